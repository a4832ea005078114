"""Tests the stochastic rounding of a program."""
