"""The StableHLO door: passes over modules from anywhere, one file a pass; ``srjit.passes``."""

from srjit.passes.diagnostics import Diagnostic, PassWarning, emit_remark, emit_warning
from srjit.passes.pipeline import MlirPass, Nested, Pipeline, PipelineSyntaxError, parse
from srjit.passes.registry import Pass, PassError, UnknownPassError, register
from srjit.passes.running import PipelineError, Printing

__all__ = [
    "Diagnostic",
    "MlirPass",
    "Nested",
    "Pass",
    "PassError",
    "PassWarning",
    "Pipeline",
    "PipelineError",
    "PipelineSyntaxError",
    "Printing",
    "UnknownPassError",
    "emit_remark",
    "emit_warning",
    "parse",
    "register",
]
