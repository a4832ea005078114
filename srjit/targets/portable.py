"""No chip in particular: every format as plain operations that any backend runs."""

from srjit.targets.base import Target

TARGETS = (Target(name="portable", kinds=(), recipe="int8"),)
