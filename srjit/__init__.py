"""srjit: low-precision matrix multiplications with stochastic rounding, for any JAX function."""

from importlib import metadata as _metadata

from srjit import recipes, targets
from srjit.api import SrjitFunction, keep_high_precision, role, srjit
from srjit.numerics.quantization import (
    Quantization,
    QuantizedArray,
    dequantize,
    quantize,
    stochastic_round,
)
from srjit.plan import Report, Site, SitePlan
from srjit.recipes import Operands, Recipe, RecipeError, Rule
from srjit.stages import Compiled, Lowered, Traced
from srjit.targets import Target
from srjit.transformation import UnsupportedSiteError, transform

__version__ = _metadata.version("srjit")

__all__ = [
    "Compiled",
    "Lowered",
    "Operands",
    "Quantization",
    "QuantizedArray",
    "Recipe",
    "RecipeError",
    "Report",
    "Rule",
    "Site",
    "SitePlan",
    "SrjitFunction",
    "Target",
    "Traced",
    "UnsupportedSiteError",
    "dequantize",
    "keep_high_precision",
    "quantize",
    "recipes",
    "role",
    "srjit",
    "stochastic_round",
    "targets",
    "transform",
]
