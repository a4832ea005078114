"""No chip in particular: every format as plain operations that any backend runs."""

from srjit.targets.target import Target

PORTABLE = Target(name="portable", kinds=(), recipe="int8")
TARGETS = (PORTABLE,)
