"""The recipes that come with srjit: a table, whose entries are all that there is to one."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from srjit.choices import unknown_name
from srjit.numerics.quantization import Quantization
from srjit.recipes.recipe import Recipe
from srjit.recipes.rule import Operands, Rule

_ATTENTION = Rule(
    operands="activations",
    keep="product of two activations (attention): kept in high precision by the recipe",
)
_HEAD = "kept in high precision by the recipe: 4 bits are too few for embeddings and heads"
_ENDS = tuple(Rule(path=p, keep=_HEAD) for p in ("*embed*", "*lm_head*", "*logits*"))


def _q(format: str, **options: Any) -> Quantization:
    return Quantization(format=format, **options)


def _sr(format: str, **options: Any) -> Quantization:
    return Quantization(format=format, rounding="stochastic", **options)


def _recipe(
    name: str,
    activation: Quantization,
    weight: Quantization,
    gradient: Quantization | None = None,
    *,
    backward: Quantization | None = None,
    hadamard: bool = False,
    ends: tuple[Rule, ...] = (),
    source: str = "",
) -> Recipe:
    """A recipe that leaves attention alone.

    Args:
      name: of the recipe.
      activation, weight: what they become.
      gradient: what gradients become; None: only the forward product is quantized.
      backward: what activations and weights become in backward products, if not what they are.
      hadamard: whether the operands of wgrad are transformed.
      ends: rules for what stands at the ends of a model.
      source: where the scheme is published.
    """
    turn = lambda q: dataclasses.replace(q, hadamard=hadamard)  # noqa: E731
    rule = Rule(
        fprop=Operands(activation=activation, weight=weight),
        dgrad=gradient and Operands(gradient=gradient, weight=backward or weight),
        wgrad=gradient
        and Operands(activation=turn(backward or activation), gradient=turn(gradient)),
    )
    return Recipe(name=name, rules=(_ATTENTION, *ends, rule), source=source)


_CHANNEL = _q("int8", granularity="channel")
_DELAYED = _q("fp8_e4m3", scaling="delayed")
_SQUARE = _q("nvfp4", granularity="square")
_EDEN = _sr("nvfp4", scale_rounding="eden", hadamard=True)

BUILTIN: dict[str, Recipe] = {
    r.name: r
    for r in (
        _recipe("int8", _q("int8"), _q("int8"), _sr("int8")),
        _recipe("int8-channel", _CHANNEL, _CHANNEL, _sr("int8", granularity="channel")),
        _recipe("int8-qat", _q("int8"), _CHANNEL),
        _recipe("int4", _q("int4"), _q("int4"), _sr("int4"), hadamard=True, ends=_ENDS),
        _recipe("int4-qat", _q("int4"), _q("int4")),
        _recipe("fp8", _q("fp8_e4m3"), _q("fp8_e4m3"), _sr("fp8_e5m2")),
        _recipe("fp8-delayed", _DELAYED, _DELAYED, _sr("fp8_e5m2", scaling="delayed")),
        # The ranges of the formats (2^15 between normal numbers of E4M3, 2^30 of E5M2) leave room
        # on both sides of what models have; of integers, gradients leave none.
        _recipe(
            "fp8-static",
            _q("fp8_e4m3", scaling="static", amax=64.0),
            _q("fp8_e4m3", scaling="static", amax=4.0),
            _sr("fp8_e5m2", scaling="static", amax=1.0),
        ),
        _recipe(
            "int8-static",
            _q("int8", scaling="static", amax=8.0),
            _q("int8", scaling="static", amax=0.5),
            _sr("int8"),
        ),
        _recipe("mxfp8", _q("mxfp8"), _q("mxfp8"), _sr("mxfp8", scale_rounding="up")),
        _recipe(
            "mxfp4",
            _q("mxfp4"),
            _q("mxfp4"),
            _sr("mxfp4", scale_rounding="up"),
            hadamard=True,
            ends=_ENDS,
            source="arXiv 2502.20586, backward: with scales rounded up in place of its factor 3/4, "
            "and a Hadamard transform for weight gradients; forward MXFP4 too",
        ),
        _recipe(
            "nvfp4",
            _q("nvfp4"),
            _SQUARE,
            _sr("nvfp4"),
            hadamard=True,
            ends=_ENDS,
            source="arXiv 2509.25149",
        ),
        _recipe(
            "nvfp4-unbiased",
            _q("nvfp4"),
            _SQUARE,
            _sr("nvfp4", scale_rounding="up"),
            hadamard=True,
            ends=_ENDS,
            source="arXiv 2509.25149, with the headroom that arXiv 2601.22813 gives stochastic "
            "rounding so that it is unbiased: by scales rounded up, in place of its factor 17/16",
        ),
        _recipe(
            "nvfp4-4over6",
            _q("nvfp4", scale_rounding="four_over_six"),
            dataclasses.replace(_SQUARE, scale_rounding="four_over_six"),
            _sr("nvfp4"),
            hadamard=True,
            ends=_ENDS,
            source="arXiv 2512.02010, forward; backward as nvfp4",
        ),
        _recipe(
            "nvfp4-eden",
            _q("nvfp4"),
            _SQUARE,
            _EDEN,
            backward=_EDEN,
            hadamard=True,
            ends=_ENDS,
            source="arXiv 2601.22813 (Quartet II): its MS-EDEN, backward; forward as nvfp4. "
            "Operands are quantized from high precision, not from the forward product's codes",
        ),
        Recipe(
            name="bf16-sr",
            rules=(Rule(keep="the recipe bf16-sr leaves matrix multiplications alone"),),
            weights="stochastic",
            moments="stochastic",
        ),
    )
}


def get(recipe: str | os.PathLike[str] | Recipe) -> Recipe:
    """The recipe with that name, from that ``.toml`` file or text, or the recipe itself.

    Raises:
      ValueError: no recipe has that name; the nearest are listed.
      TypeError: ``recipe`` is something else.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if not isinstance(recipe, (str, os.PathLike)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"recipe is a name, a .toml file or a Recipe, got {recipe!r}")
    if isinstance(recipe, os.PathLike) or str(recipe).endswith(".toml"):
        return Recipe.load(recipe)
    if "\n" in recipe:
        return Recipe.from_toml(recipe)
    if recipe not in BUILTIN:
        raise unknown_name("recipe", recipe, [*BUILTIN, "auto"])
    return BUILTIN[recipe]


def names() -> tuple[str, ...]:
    """The built-in recipes' names."""
    return tuple(BUILTIN)
