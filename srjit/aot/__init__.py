"""Programs compiled for hardware that is not attached, and what their compilers made of them."""

from srjit.aot.compilers import MissingCompilerError
from srjit.aot.placement import Placement
from srjit.aot.report import CompiledReport, CompiledSite, reported

__all__ = ["CompiledReport", "CompiledSite", "MissingCompilerError", "Placement", "reported"]
