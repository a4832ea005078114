"""Calls of a rewritten function: keys, arguments, the jit with a key, stages."""
