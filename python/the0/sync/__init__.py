"""Keeps one bot's state and logs in the object store: claim, restore, commit, log pieces.

Knows segments, HEAD and the state folder; knows nothing of languages, containers or schedules.
"""
