"""No chip in particular: every format as plain operations that any backend runs."""

from srjit.targets.target import Target

TARGETS = (Target(name="portable", kinds=(), recipe="int8"),)
