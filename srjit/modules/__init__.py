"""Modules that run."""
