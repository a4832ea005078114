"""srjit: low-precision matrix multiplications with stochastic rounding, for any JAX function."""

import importlib as _importlib
import sys as _sys
import types as _types
from typing import TYPE_CHECKING as _TYPE_CHECKING

if _TYPE_CHECKING:
    from srjit import optim, passes, recipes, targets
    from srjit.api.export import Exported, export, load
    from srjit.api.freeze import freeze
    from srjit.api.function import SrjitFunction, keep_high_precision, replay, role, srjit
    from srjit.api.recommend import Recommendation, recommend
    from srjit.api.transformation import UnsupportedSiteError, transform
    from srjit.calling.stages import Compiled, Lowered, Traced
    from srjit.diagnostics.verify.certificate import Certificate, OperandCertificate
    from srjit.diagnostics.verify.certify import verify_function
    from srjit.diagnostics.watch.diagnosis import Diagnosis
    from srjit.diagnostics.watch.sinks import TensorBoard
    from srjit.modules.rejit import Rejitted, rejit
    from srjit.numerics.arrays import QuantizedArray, dequantize
    from srjit.numerics.encode import quantize, stochastic_round
    from srjit.numerics.quantization import Quantization
    from srjit.planning.site import Site, SitePlan, WriteBack
    from srjit.recipes import Operands, Recipe, RecipeError, Rule
    from srjit.report.report import Report
    from srjit.targets import Target

    __version__: str

# Names are imported when they are first used: srjit-opt needs none of them, and they need all of
# JAX, which would be most of the time that it takes.
_HOME = {
    name: module
    for module, names in {
        "api.export": "Exported export load",
        "api.freeze": "freeze",
        "api.function": "SrjitFunction keep_high_precision replay role srjit",
        "api.recommend": "Recommendation recommend",
        "api.transformation": "UnsupportedSiteError transform",
        "calling.stages": "Compiled Lowered Traced",
        "diagnostics.verify.certificate": "Certificate OperandCertificate",
        "diagnostics.verify.certify": "verify_function",
        "diagnostics.watch.diagnosis": "Diagnosis",
        "diagnostics.watch.sinks": "TensorBoard",
        "modules.rejit": "Rejitted rejit",
        "numerics.arrays": "QuantizedArray dequantize",
        "numerics.encode": "quantize stochastic_round",
        "numerics.quantization": "Quantization",
        "passes": "",
        "recipes": "Operands Recipe RecipeError Rule",
        "planning.site": "Site SitePlan WriteBack",
        "report.report": "Report",
        "targets": "Target",
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
