"""How a rewritten function is called: keys, arguments, the jit with a key, stages."""
