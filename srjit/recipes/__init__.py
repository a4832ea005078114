"""Recipes: which format and rounding each operand of each product gets, as data.

A recipe is a list of rules; the first that matches a site decides. It prints, compares, and
round-trips through TOML.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import os
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from srjit.numerics.formats import unknown_name
from srjit.numerics.quantization import Quantization, Rounding
from srjit.recipes.toml import TomlLines
from srjit.targets.target import Target

Role = Literal["fprop", "dgrad", "wgrad"]
Kind = Literal["activation", "weight", "gradient"]
WriteBackRounding = Literal["stochastic"]
ROLES: tuple[Role, ...] = ("fprop", "dgrad", "wgrad")
KINDS: tuple[Kind, ...] = ("activation", "weight", "gradient")
_WRITTEN = ("weights", "moments", "casts")
_OPERANDS = ("any", "weight", "activations")
# Which kinds meet in each product of a layer.
_KINDS_OF: dict[Role, tuple[Kind, Kind]] = {
    "fprop": ("activation", "weight"),
    "dgrad": ("gradient", "weight"),
    "wgrad": ("activation", "gradient"),
}


class RecipeError(ValueError):
    """A recipe that says something srjit cannot do; the message names the rule or the line.

    Attributes:
      where: the keys that lead to what is wrong, inside the rule or recipe.
    """

    def __init__(self, message: str, where: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.where = where


@dataclasses.dataclass(frozen=True, kw_only=True)
class Operands:
    """What the operands of one role become; None leaves an operand in high precision."""

    activation: Quantization | None = None
    weight: Quantization | None = None
    gradient: Quantization | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """What happens to the sites that it matches.

    Attributes:
      path: glob over the site's name-scope path (``*/attn/*``).
      op: glob over the operation (``dot_general``, ``conv_general_dilated``, ``ragged_dot*``).
      role: the one role that it matches, or ``*``.
      operands: ``weight`` matches products that involve a weight (its gradient too),
        ``activations`` those of two activations, as in attention, and their gradients.
      min_size: matches products whose smallest of (rows, columns, contraction) is at least this.
      keep: a reason; the site stays in high precision and the report gives the reason.
      fprop, dgrad, wgrad: what each role's operands become; None keeps that role in high precision.
    """

    path: str = "*"
    op: str = "*"
    role: Role | Literal["*"] = "*"
    operands: Literal["any", "weight", "activations"] = "any"
    min_size: int = 0
    keep: str = ""
    fprop: Operands | None = None
    dgrad: Operands | None = None
    wgrad: Operands | None = None

    def __post_init__(self) -> None:
        _check_types(self, ("path", "op", "role", "operands", "keep"), ("min_size",))
        for field, known in (("role", (*ROLES, "*")), ("operands", _OPERANDS)):
            if getattr(self, field) not in known:
                raise RecipeError(str(unknown_name(field, getattr(self, field), known)), (field,))
        if self.keep and (self.fprop or self.dgrad or self.wgrad):
            message = f"rule {self.path!r} both keeps sites and quantizes them: drop one"
            raise RecipeError(message, ("keep",))
        for role in ROLES:
            if (operands := getattr(self, role)) is not None:
                self._check_operands(role, operands)

    def _check_operands(self, role: Role, operands: Operands) -> None:
        given = {k: q for k in KINDS if (q := getattr(operands, k)) is not None}
        for kind in given:
            if kind not in (*_KINDS_OF[role], "activation"):
                message = f"{role} multiplies {' and '.join(_KINDS_OF[role])}; it has no {kind}"
                raise RecipeError(f"rule {self.path!r}: {message}", (role, kind))
        turned = {q.rotation for q in given.values()}
        if any(turned) and not (len(turned) == 1 and len(given) > 1):
            message = (
                "a Hadamard transform has to be on both operands, or it does not cancel; "
                "that of scale_rounding='eden' is another than that of the rest"
            )
            raise RecipeError(f"rule {self.path!r}, {role}: {message}", (role,))

    def matches(self, path: str, op: str, role: str, weight: bool, size: int) -> bool:
        """Whether this rule decides about a site."""
        return (
            fnmatch.fnmatchcase(path, self.path)
            and fnmatch.fnmatchcase(op, self.op)
            and self.role in ("*", role)
            and self.operands in ("any", "weight" if weight else "activations")
            and size >= self.min_size
        )


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
    pays_on: str | Target = ""
    source: str = ""

    def __post_init__(self) -> None:
        named = () if isinstance(self.pays_on, Target) else ("pays_on",)
        _check_types(self, ("name", *named, "source"), ("keep_first", "keep_last"))
        for field in _WRITTEN:
            if getattr(self, field) not in (None, "stochastic"):
                known = ("stochastic",)
                raise RecipeError(str(unknown_name(field, getattr(self, field), known)), (field,))
        if self.moments and not self.weights:
            message = 'moments are written back as weights are: it needs weights = "stochastic" too'
            raise RecipeError(message, ("moments",))

    def name_of(self, rule: Rule) -> str:
        """What messages call one of the rules: ``rule 2 (path '*/attn/*')``."""
        shown = [
            f"{f} {value!r}"
            for f in ("path", "op", "role", "operands", "min_size")
            if (value := getattr(rule, f)) != getattr(Rule, f)
        ]
        which = f" ({', '.join(shown)})" if shown else ""
        return f"rule {self.rules.index(rule) + 1}{which} of recipe {self.name!r}"

    @property
    def has_delayed_scales(self) -> bool:
        """Whether any quantization takes its scale from earlier steps."""
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

        return self.map_quantizations(change, f"{self.name}[without noise]")

    def without_write_backs(self) -> Recipe:
        """The recipe for products alone: what is written or cast stays as a program has it."""
        return dataclasses.replace(self, weights=None, moments=None, casts=None)

    def to_toml(self) -> str:
        """The recipe as TOML text; ``Recipe.from_toml`` reads it back equal."""
        lines = [f"name = {_toml(self.name)}"]
        named = {"pays_on": getattr(self.pays_on, "name", self.pays_on), "source": self.source}
        lines += [f"{k} = {_toml(v)}" for k, v in named.items() if v]
        lines += [f"{k} = {_toml(v)}" for k in _WRITTEN if (v := getattr(self, k))]
        lines += [f"{k} = {v}" for k in ("keep_first", "keep_last") if (v := getattr(self, k))]
        for rule in self.rules:
            lines += ["", "[[rule]]"]
            for field in dataclasses.fields(rule):
                value = getattr(rule, field.name)
                if field.name not in ROLES and value != field.default:
                    lines.append(f"{field.name} = {_toml(value)}")
            for role in ROLES:
                given: Operands | None = getattr(rule, role)
                for kind in KINDS if given else ():
                    q = getattr(given, kind)
                    if q is not None:
                        lines.append(f"{role}.{kind} = {_inline_table(q)}")
                if given == Operands():
                    lines.append(f"{role} = {{}}")
        return "\n".join(lines) + "\n"

    @classmethod
    def from_toml(cls, text: str) -> Recipe:
        """The recipe that TOML text describes.

        Raises:
          RecipeError: not TOML, or not a recipe; the message names the line.
        """
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise RecipeError(f"recipe is not TOML: {error}") from None
        lines = TomlLines(text)
        try:
            return _recipe(data)
        except RecipeError as error:
            raise RecipeError(f"line {lines.find(error.where)}: {error}", error.where) from None

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the recipe as TOML."""
        Path(path).write_text(self.to_toml(), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Reads a recipe from a TOML file; errors name the file and the line."""
        try:
            return cls.from_toml(Path(path).read_text(encoding="utf-8"))
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}", error.where) from None


def _check_types(made: Any, strings: Sequence[str], counts: Sequence[str]) -> None:
    for field in strings:
        if not isinstance(value := getattr(made, field), str):
            raise RecipeError(f"{field} is a string, got {value!r}", (field,))
    for field in counts:
        value = getattr(made, field)
        if type(value) is not int or value < 0:
            raise RecipeError(f"{field} is a number from 0 on, got {value!r}", (field,))


# ------------------------------------------------------------------------------------------ TOML


def _toml(value: Any) -> str:
    """A value as TOML: as JSON, but for two differences in strings."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _inline_table(q: Quantization) -> str:
    given = {
        f.name: v
        for f in dataclasses.fields(q)
        if f.name != "axis" and (v := getattr(q, f.name)) != f.default
    }
    return "{ " + ", ".join(f"{k} = {_toml(v)}" for k, v in given.items()) + " }"


def _recipe(data: dict[str, Any]) -> Recipe:
    known = {"name", "rule", "keep_first", "keep_last", "pays_on", "source", *_WRITTEN}
    _check_keys(data, known, "recipe", ())
    if "name" not in data:
        raise RecipeError('a recipe needs name = "..."')
    if not isinstance(tables := data.pop("rule", []), list):
        raise RecipeError("rules are written as [[rule]]", ("rule",))
    rules = tuple(_rule(table, ("rule", str(i))) for i, table in enumerate(tables))
    return Recipe(rules=rules, **data)


def _check_keys(
    table: Any, known: set[str], what: str, where: tuple[str, ...], example: str = ""
) -> None:
    if not isinstance(table, dict):
        raise RecipeError(f"{'.'.join(where[2:])} is a table{example}, got {table!r}", where)
    for key in table:
        if key not in known:
            raise RecipeError(str(unknown_name(f"{what} key", key, known)), (*where, key))


def _rule(table: Any, where: tuple[str, ...]) -> Rule:
    _check_keys(table, {f.name for f in dataclasses.fields(Rule)}, "rule", where)
    operands: dict[str, Any] = {
        role: _operands(table[role], (*where, role)) for role in ROLES if role in table
    }
    try:
        return Rule(**{**table, **operands})
    except RecipeError as error:
        raise RecipeError(str(error), (*where, *error.where)) from None


def _operands(table: Any, where: tuple[str, ...]) -> Operands:
    _check_keys(table, set(KINDS), "operand", where)
    return Operands(**{kind: _quantization(table[kind], (*where, kind)) for kind in table})


# What a quantization's values are in TOML, where they are no strings.
_TYPES: dict[str, tuple[Any, str]] = {
    "block": (int, "a whole number"),
    "amax": ((int, float), "a number"),
    "hadamard": (bool, "true or false"),
}


def _quantization(table: Any, where: tuple[str, ...]) -> Quantization:
    fields = {f.name for f in dataclasses.fields(Quantization)} - {"axis"}
    _check_keys(table, fields, "quantization", where, ' such as { format = "int8" }')
    name = ".".join(where[2:])
    if "format" not in table:
        raise RecipeError(f"{name} needs a format", where)
    for key, value in table.items():
        kind, what = _TYPES.get(key, (str, "a string"))
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise RecipeError(f"{name}: {key} is {what}, got {value!r}", (*where, key))
    try:
        return Quantization(**table)
    except (ValueError, TypeError) as error:
        wrong = next((key for key in table if key in str(error)), "format")
        raise RecipeError(f"{name}: {error}", (*where, wrong)) from None


# ---------------------------------------------------------------- the built-in recipes

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
