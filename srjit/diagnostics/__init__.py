"""What srjit tells about its work: reports, dumps."""
