"""Streams figures of quantizations from a running program."""
