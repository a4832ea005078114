"""Recipes: which format and rounding each operand of each product gets, as data."""

from __future__ import annotations

import dataclasses
import fnmatch
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from srjit.choices import WIRES, Wire, unknown_name
from srjit.numerics.quantization import Quantization, Rounding
from srjit.recipes import toml
from srjit.recipes.rule import KINDS, ROLES, Operands, RecipeError, Rule, check_types
from srjit.targets.target import Target

WriteBackRounding = Literal["stochastic"]
ResidualFormat = Literal["int8", "fp8"]
_RESIDUALS = {"int8": "int8", "fp8": "fp8_e4m3"}  # and their formats
_WRITTEN = ("weights", "moments", "casts")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named list of rules.

    Attributes:
      name: what users type, and what reports print.
      rules: first match decides; a site that none matches stays in high precision.
      keep_first, keep_last: how many weight products to keep in high precision at the beginning
        and the end of the forward pass, with their gradients.
      weights: ``stochastic``: where a whole training step writes parameters back that are narrower
        than float32, it adds in float32 and rounds stochastically to the parameter's own dtype.
        None: as the program has it.
      moments: the same for what the step takes and returns beside parameters, of their shapes and
        dtypes: the moments of an optimizer. Goes with ``weights``.
      casts: ``stochastic``: every cast of a gradient to a narrower float type, in the backward pass
        as JAX wrote it, rounds stochastically. None: to nearest, as the program has it.
      residuals: ``int8`` or ``fp8``: where a whole training step is differentiated inside, what its
        backward pass multiplies cotangents by, element by element, is kept as codes that are
        rounded stochastically, with a scale a row, in place of the floats that it is made of. Or
        pairs of a glob over paths and one of these, or an empty text, of which the first that
        matches counts. None: as the program has it.
      reduce: ``exact``: where devices hold parts of a contraction, they add their parts of the
        product as exactly as one device adds: as int32 or float32, which may be twice the bytes
        that the program's own product sends. None: in the dtype of that product (bfloat16 for
        float16). On one device there is no difference.
      wire: ``bf16`` or ``fp8`` (E4M3): where devices hold parts of a contraction whose product is a
        weight's gradient, each rounds its part stochastically to that, and sends codes of it; they
        are added in float32. None: parts are added as ``reduce`` says.
      pays_on: a target, or its name, by whose estimates quantizing has to pay: sites where it does
        not stay in high precision. Empty: whatever it costs.
      source: where the scheme is published, and how the recipe differs.
    """

    name: str
    rules: tuple[Rule, ...]
    keep_first: int = 0
    keep_last: int = 0
    weights: WriteBackRounding | None = None
    moments: WriteBackRounding | None = None
    casts: WriteBackRounding | None = None
    residuals: ResidualFormat | tuple[tuple[str, ResidualFormat | Literal[""]], ...] | None = None
    reduce: Literal["exact"] | None = None
    wire: Wire | None = None
    pays_on: str | Target = ""
    source: str = ""

    def __post_init__(self) -> None:
        named = () if isinstance(self.pays_on, Target) else ("pays_on",)
        check_types(self, ("name", *named, "source"), ("keep_first", "keep_last"))
        for field in _WRITTEN:
            if getattr(self, field) not in (None, "stochastic"):
                known = ("stochastic",)
                raise RecipeError(str(unknown_name(field, getattr(self, field), known)), (field,))
        self._check_residuals()
        for field, known in (("reduce", ("exact",)), ("wire", WIRES)):
            value = getattr(self, field)
            if value is not None and value not in known:
                raise RecipeError(str(unknown_name(field, value, known)), (field,))
        if self.reduce and self.wire:
            message = 'reduce = "exact" leaves nothing to round on the wire: it is one or the other'
            raise RecipeError(message, ("wire",))
        if self.moments and not self.weights:
            message = 'moments are written back as weights are: it needs weights = "stochastic" too'
            raise RecipeError(message, ("moments",))

    def _check_residuals(self) -> None:
        given: Any = self.residuals
        if isinstance(given, list):  # as TOML has pairs
            given = tuple(tuple(p) if isinstance(p, list) else p for p in given)
            object.__setattr__(self, "residuals", given)
        pairs = given if isinstance(given, tuple) else (("*", given),) if given is not None else ()
        for pair in pairs:
            if not isinstance(pair, tuple) or [type(text) for text in pair] != [str, str]:
                message = "residuals is a format, or pairs of a path and a format"
                raise RecipeError(f"{message}, got {given!r}", ("residuals",))
            if pair[1] not in _RESIDUALS and not (pair[1] == "" and isinstance(given, tuple)):
                message = str(unknown_name("residuals", pair[1], _RESIDUALS))
                raise RecipeError(message, ("residuals",))

    def residual(self, path: str) -> Quantization | None:
        """The way to keep a path's values for the backward pass; None: in floats."""
        given = self.residuals or ()
        pairs = (("*", given),) if isinstance(given, str) else given
        found = next((f for glob, f in pairs if fnmatch.fnmatchcase(path, glob)), "")
        if not found:
            return None
        return Quantization(format=_RESIDUALS[found], rounding="stochastic", granularity="channel")

    def name_of(self, rule: Rule) -> str:
        """The name of a rule in messages: ``rule 2 (path '*/attn/*')``."""
        shown = [
            f"{f} {value!r}"
            for f in ("path", "op", "role", "operands", "min_size", "computes")
            if (value := getattr(rule, f)) != getattr(Rule, f)
        ]
        which = f" ({', '.join(shown)})" if shown else ""
        return f"rule {self.rules.index(rule) + 1}{which} of recipe {self.name!r}"

    @property
    def stated(self) -> str:
        """The text that ``recipes.get`` reads as this recipe: its name, or TOML."""
        from srjit.recipes.builtin import BUILTIN

        return self.name if BUILTIN.get(self.name) == self else self.to_toml()

    @property
    def has_delayed_scales(self) -> bool:
        """True if any quantization takes its scale from earlier steps."""
        given = (getattr(rule, role) for rule in self.rules for role in ROLES)
        specs = (getattr(g, kind) for g in given if g is not None for kind in KINDS)
        return any(q is not None and q.scaling == "delayed" for q in specs)

    def map_quantizations(
        self, change: Callable[[str, str, Quantization], Quantization], name: str | None = None
    ) -> Recipe:
        """The recipe with ``change(role, kind, quantization)`` in place of each quantization."""

        def operands(role: str, given: Operands | None) -> Operands | None:
            if given is None:
                return None
            new = {k: q and change(role, k, q) for k in KINDS for q in [getattr(given, k)]}
            return Operands(**new)

        rules = tuple(
            dataclasses.replace(rule, **{r: operands(r, getattr(rule, r)) for r in ROLES})
            for rule in self.rules
        )
        return dataclasses.replace(self, name=name or self.name, rules=rules)

    def with_rounding(self, **roundings: Rounding) -> Recipe:
        """The recipe with another rounding: ``with_rounding(gradients="nearest")``.

        Args:
          **roundings: any of ``activations``, ``weights``, ``gradients``.
        """
        plural = {k + "s": k for k in KINDS}
        for given in roundings:
            if given not in plural:
                raise unknown_name("operand", given, plural)
        chosen = {plural[k]: v for k, v in roundings.items()}
        label = ",".join(f"{k}={v}" for k, v in roundings.items())
        return self.map_quantizations(
            lambda _, kind, q: dataclasses.replace(q, rounding=chosen.get(kind, q.rounding)),
            f"{self.name}[{label}]",
        )

    def without_noise(self) -> Recipe:
        """The recipe with its stochastic quantizers removed, whose results averages converge to."""

        def change(role: str, kind: str, q: Quantization) -> Quantization:
            del role, kind
            return dataclasses.replace(q, rounding="none") if q.rounding == "stochastic" else q

        without = self.map_quantizations(change, f"{self.name}[without noise]")
        return dataclasses.replace(without, wire=None)

    def without_write_backs(self) -> Recipe:
        """The recipe for products alone: what is written, cast or kept is as a program has it."""
        return dataclasses.replace(self, weights=None, moments=None, casts=None, residuals=None)

    def to_toml(self) -> str:
        """The recipe as TOML text; ``Recipe.from_toml`` reads it back equal."""
        return toml.text_of(self)

    @classmethod
    def from_toml(cls, text: str) -> Recipe:
        """The recipe that TOML text describes.

        Raises:
          RecipeError: not TOML, or not a recipe; the message names the line.
        """
        return toml.read(text, cls)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the recipe as TOML."""
        Path(path).write_text(self.to_toml(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Reads a recipe from a TOML file; errors name the file and the line."""
        try:
            return cls.from_toml(toml.decoded(Path(path).read_bytes()))
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}", error.where) from None
