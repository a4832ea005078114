"""The StableHLO door: passes over modules from anywhere, one file a pass; ``srjit.passes``."""

from srjit.passes.driver.diagnostics import (
    Diagnostic,
    PassWarning,
    PipelineError,
    emit_remark,
    emit_warning,
)
from srjit.passes.driver.pipeline import MlirPass, Nested, Pipeline, PipelineSyntaxError, parse
from srjit.passes.driver.registry import Pass, PassError, UnknownPassError, register
from srjit.passes.driver.running import Printing

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
