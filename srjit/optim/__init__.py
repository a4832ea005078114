"""For Optax: parameters that are rounded stochastically, and moments that are kept as codes.

For those who prefer to say it where the optimizer is made; recipes with ``weights="stochastic"``
round the parameters of any training step.
"""

from srjit.optim.moments import QuantizedMomentsState, quantized_moments
from srjit.optim.parameters import StochasticRoundingState, stochastic_rounding
from srjit.optim.positive import PositiveArray

__all__ = [
    "PositiveArray",
    "QuantizedMomentsState",
    "StochasticRoundingState",
    "quantized_moments",
    "stochastic_rounding",
]
