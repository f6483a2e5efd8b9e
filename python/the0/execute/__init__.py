"""Runs one bot: fetches code and state, starts and supervises its process, ends it cleanly."""
