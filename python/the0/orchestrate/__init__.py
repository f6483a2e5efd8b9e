"""Decides which bots run where; starts `execute` as a program."""
