"""The recipes that come with srjit: a table, whose entries are all that there is to one."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

from srjit.numerics.formats import unknown_name
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


def _training(
    name: str,
    activation: Quantization,
    weight: Quantization,
    gradient: Quantization,
    *,
    hadamard: bool = False,
    ends: tuple[Rule, ...] = (),
    source: str = "",
) -> Recipe:
    """All three products quantized; ``hadamard`` transforms the inputs of wgrad."""
    turn = lambda q: dataclasses.replace(q, hadamard=hadamard)  # noqa: E731
    rule = Rule(
        fprop=Operands(activation=activation, weight=weight),
        dgrad=Operands(gradient=gradient, weight=weight),
        wgrad=Operands(activation=turn(activation), gradient=turn(gradient)),
    )
    return Recipe(name=name, rules=(_ATTENTION, *ends, rule), source=source)


def _forward_only(name: str, activation: Quantization, weight: Quantization) -> Recipe:
    rule = Rule(fprop=Operands(activation=activation, weight=weight))
    return Recipe(name=name, rules=(_ATTENTION, rule))


def _same(name: str, format: str, **options: Any) -> Recipe:
    """One format everywhere: nearest forward, stochastic gradients."""
    hadamard = options.pop("hadamard", False)
    ends = options.pop("ends", ())
    source = options.pop("source", "")
    gradient = options.pop("gradient", {})
    weight = options.pop("weight", {})
    return _training(
        name,
        _q(format, **options),
        _q(format, **{**options, **weight}),
        _q(format, rounding="stochastic", **{**options, **gradient}),
        hadamard=hadamard,
        ends=ends,
        source=source,
    )


def _eden() -> Recipe:
    """``nvfp4`` forward; backward, both operands of a product as MS-EDEN says."""
    activation, weight = _q("nvfp4"), _q("nvfp4", granularity="square")
    eden = _q("nvfp4", rounding="stochastic", scale_rounding="eden", hadamard=True)
    rule = Rule(
        fprop=Operands(activation=activation, weight=weight),
        dgrad=Operands(gradient=eden, weight=eden),
        wgrad=Operands(activation=eden, gradient=eden),
    )
    source = (
        "arXiv 2601.22813 (Quartet II): its MS-EDEN, backward; forward as nvfp4. Operands are "
        "quantized from high precision, not from the forward product's codes"
    )
    return Recipe(name="nvfp4-eden", rules=(_ATTENTION, *_ENDS, rule), source=source)


BUILTIN: dict[str, Recipe] = {
    r.name: r
    for r in (
        _same("int8", "int8"),
        _same("int8-channel", "int8", granularity="channel"),
        _forward_only("int8-qat", _q("int8"), _q("int8", granularity="channel")),
        _same("int4", "int4", hadamard=True, ends=_ENDS),
        _forward_only("int4-qat", _q("int4"), _q("int4")),
        _training("fp8", _q("fp8_e4m3"), _q("fp8_e4m3"), _q("fp8_e5m2", rounding="stochastic")),
        _training(
            "fp8-delayed",
            _q("fp8_e4m3", scaling="delayed"),
            _q("fp8_e4m3", scaling="delayed"),
            _q("fp8_e5m2", scaling="delayed", rounding="stochastic"),
        ),
        _same("mxfp8", "mxfp8", gradient={"scale_rounding": "up"}),
        _same(
            "mxfp4",
            "mxfp4",
            gradient={"scale_rounding": "up"},
            hadamard=True,
            ends=_ENDS,
            source="arXiv 2502.20586, backward: with scales rounded up in place of its factor 3/4, "
            "and a Hadamard transform for weight gradients; forward MXFP4 too",
        ),
        _same(
            "nvfp4",
            "nvfp4",
            weight={"granularity": "square"},
            hadamard=True,
            ends=_ENDS,
            source="arXiv 2509.25149",
        ),
        _same(
            "nvfp4-unbiased",
            "nvfp4",
            weight={"granularity": "square"},
            gradient={"scale_rounding": "up"},
            hadamard=True,
            ends=_ENDS,
            source="arXiv 2509.25149, with the headroom that arXiv 2601.22813 gives stochastic "
            "rounding so that it is unbiased: by scales rounded up, in place of its factor 17/16",
        ),
        _same(
            "nvfp4-4over6",
            "nvfp4",
            scale_rounding="four_over_six",
            weight={"granularity": "square"},
            gradient={"scale_rounding": "standard"},
            hadamard=True,
            ends=_ENDS,
            source="arXiv 2512.02010, forward; backward as nvfp4",
        ),
        _eden(),
        Recipe(
            name="bf16-sr",
            rules=(Rule(keep="the recipe bf16-sr leaves matrix multiplications alone"),),
            weights="stochastic",
            moments="stochastic",
        ),
    )
}


def get(recipe: str | os.PathLike[str] | Recipe) -> Recipe:
    """The recipe with that name, from that ``.toml`` file, or the recipe itself.

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
    if recipe not in BUILTIN:
        raise unknown_name("recipe", recipe, [*BUILTIN, "auto"])
    return BUILTIN[recipe]


def names() -> tuple[str, ...]:
    """The built-in recipes' names."""
    return tuple(BUILTIN)
