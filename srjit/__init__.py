"""srjit: low-precision matrix multiplications with stochastic rounding, for any JAX function."""

import importlib as _importlib
import sys as _sys
import types as _types
from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    from srjit import optim, passes, recipes, targets
    from srjit.api import SrjitFunction, keep_high_precision, replay, role, srjit
    from srjit.diagnostics.certificate import Certificate, OperandCertificate
    from srjit.diagnostics.diagnosis import Diagnosis
    from srjit.diagnostics.sinks import TensorBoard
    from srjit.diagnostics.verifying import verify_function
    from srjit.export import Exported, export, load
    from srjit.freezing import freeze
    from srjit.numerics.quantization import (
        Quantization,
        QuantizedArray,
        dequantize,
        quantize,
        stochastic_round,
    )
    from srjit.plan import Report, Site, SitePlan, WriteBack
    from srjit.recipes import Operands, Recipe, RecipeError, Rule
    from srjit.recommending import Recommendation, recommend
    from srjit.rejit import Rejitted, rejit
    from srjit.stages import Compiled, Lowered, Traced
    from srjit.targets import Target
    from srjit.transformation import UnsupportedSiteError, transform

    __version__: str

# Names are imported when they are first used: srjit-opt needs none of them, and they need all of
# JAX, which would be most of the time that it takes.
_HOME = {
    name: module
    for module, names in {
        "passes": "",
        "diagnostics.certificate": "Certificate OperandCertificate",
        "diagnostics.diagnosis": "Diagnosis",
        "recommending": "Recommendation recommend",
        "diagnostics.sinks": "TensorBoard",
        "diagnostics.verifying": "verify_function",
        "export": "Exported export load",
        "freezing": "freeze",
        "rejit": "Rejitted rejit",
        "recipes": "Operands Recipe RecipeError Rule",
        "targets": "Target",
        "api": "SrjitFunction keep_high_precision replay role srjit",
        "numerics.quantization": "Quantization QuantizedArray dequantize quantize stochastic_round",
        "plan": "Report Site SitePlan WriteBack",
        "stages": "Compiled Lowered Traced",
        "transformation": "UnsupportedSiteError transform",
    }.items()
    for name in names.split()
}
_MODULES = ("optim", "passes", "recipes", "targets")

__all__ = [
    "Certificate",
    "Compiled",
    "Diagnosis",
    "Exported",
    "Lowered",
    "OperandCertificate",
    "Operands",
    "Quantization",
    "QuantizedArray",
    "Recipe",
    "RecipeError",
    "Recommendation",
    "Rejitted",
    "Report",
    "Rule",
    "Site",
    "SitePlan",
    "SrjitFunction",
    "Target",
    "TensorBoard",
    "Traced",
    "UnsupportedSiteError",
    "WriteBack",
    "dequantize",
    "export",
    "freeze",
    "keep_high_precision",
    "load",
    "optim",
    "passes",
    "quantize",
    "recipes",
    "recommend",
    "rejit",
    "replay",
    "role",
    "srjit",
    "stochastic_round",
    "targets",
    "transform",
    "verify_function",
]


def __getattr__(name: str) -> object:
    if name in _MODULES:
        value = _importlib.import_module(f"{__name__}.{name}")
    elif name in _HOME:
        value = getattr(_importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    elif name == "__version__":
        from importlib import metadata

        value = metadata.version(__name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, "__version__"})


class _Package(_types.ModuleType):
    """A package in which a file may be called as the function that it defines."""

    def __setattr__(self, name: str, value: object) -> None:
        # What the import system does after it has imported a file must not hide the function.
        if not (name in _HOME and isinstance(value, _types.ModuleType)):
            super().__setattr__(name, value)


_sys.modules[__name__].__class__ = _Package
