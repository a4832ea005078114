"""Programs compiled for hardware that is not attached, and what their compilers made of them."""

from srjit.aot.compilers import MissingCompilerError
from srjit.aot.compiling import Placement, reported
from srjit.aot.report import CompiledSite, Report

__all__ = ["CompiledSite", "MissingCompilerError", "Placement", "Report", "reported"]
