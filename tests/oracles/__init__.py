"""What the specifications say, in NumPy and plain Python: nothing here imports what is tested."""
