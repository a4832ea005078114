"""Recipes: which format and rounding each operand of each product gets, as data.

A recipe is a list of rules; the first that matches a site decides. It prints, compares, and
round-trips through TOML.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import os
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from srjit.numerics.formats import unknown_name
from srjit.numerics.quantization import Quantization, Rounding

Role = Literal["fprop", "dgrad", "wgrad"]
Kind = Literal["activation", "weight", "gradient"]
ROLES: tuple[Role, ...] = ("fprop", "dgrad", "wgrad")
KINDS: tuple[Kind, ...] = ("activation", "weight", "gradient")
# Which kinds meet in each product of a layer.
_KINDS_OF: dict[Role, tuple[Kind, Kind]] = {
    "fprop": ("activation", "weight"),
    "dgrad": ("gradient", "weight"),
    "wgrad": ("activation", "gradient"),
}


class RecipeError(ValueError):
    """A recipe that says something srjit cannot do; the message names the rule or the line."""


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
        if self.role != "*" and self.role not in ROLES:
            raise RecipeError(str(unknown_name("role", self.role, ROLES)))
        if self.operands not in ("any", "weight", "activations"):
            known = ("any", "weight", "activations")
            raise RecipeError(str(unknown_name("operands", self.operands, known)))
        if self.keep and (self.fprop or self.dgrad or self.wgrad):
            raise RecipeError(f"rule {self.path!r} both keeps sites and quantizes them: drop one")
        for role in ROLES:
            operands: Operands | None = getattr(self, role)
            if operands is None:
                continue
            given = {k: q for k in KINDS if (q := getattr(operands, k)) is not None}
            if stray := given.keys() - set(_KINDS_OF[role]) - {"activation"}:
                raise RecipeError(
                    f"rule {self.path!r}: {role} multiplies {' and '.join(_KINDS_OF[role])}; it "
                    f"has no {'/'.join(sorted(stray))}"
                )
            if len({q.hadamard for q in given.values()}) > 1 or (
                len(given) == 1 and any(q.hadamard for q in given.values())
            ):
                raise RecipeError(
                    f"rule {self.path!r}, {role}: a Hadamard transform has to be on both operands, "
                    "or it does not cancel"
                )

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
    """

    name: str
    rules: tuple[Rule, ...]
    keep_first: int = 0
    keep_last: int = 0

    def name_of(self, rule: Rule) -> str:
        """What messages call one of the rules: ``rule 2 (path '*/attn/*')``."""
        shown = [
            f"{f} {value!r}"
            for f in ("path", "op", "role", "operands", "min_size")
            if (value := getattr(rule, f)) != getattr(Rule, f)
        ]
        which = f" ({', '.join(shown)})" if shown else ""
        return f"rule {self.rules.index(rule) + 1}{which} of recipe {self.name!r}"

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

    def to_toml(self) -> str:
        """The recipe as TOML text; ``Recipe.from_toml`` reads it back equal."""
        lines = [f"name = {json.dumps(self.name)}"]
        lines += [f"{k} = {v}" for k in ("keep_first", "keep_last") if (v := getattr(self, k))]
        for rule in self.rules:
            lines += ["", "[[rule]]"]
            for field in dataclasses.fields(rule):
                value = getattr(rule, field.name)
                if field.name not in ROLES and value != field.default:
                    lines.append(f"{field.name} = {json.dumps(value)}")
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
        lines = _Lines(text)
        lines.check_keys(data, {"name", "rule", "keep_first", "keep_last"}, "recipe")
        if not isinstance(data.get("name"), str):
            raise RecipeError('line 1: a recipe needs name = "..."')
        rules = tuple(_rule(table, lines, i) for i, table in enumerate(data.get("rule", [])))
        counts = {k: data.get(k, 0) for k in ("keep_first", "keep_last")}
        for key, value in counts.items():
            if not isinstance(value, int) or value < 0:
                raise lines.error(None, key, f"{key} is a number of sites, got {value!r}")
        return cls(name=data["name"], rules=rules, **counts)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the recipe as TOML."""
        Path(path).write_text(self.to_toml())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Recipe:
        """Reads a recipe from a TOML file; errors name the file and the line."""
        try:
            return cls.from_toml(Path(path).read_text())
        except RecipeError as error:
            raise RecipeError(f"{path}: {error}") from None


def _inline_table(q: Quantization) -> str:
    given = {
        f.name: v
        for f in dataclasses.fields(q)
        if f.name != "axis" and (v := getattr(q, f.name)) != f.default
    }
    return "{ " + ", ".join(f"{k} = {json.dumps(v)}" for k, v in given.items()) + " }"


class _Lines:
    """Where the keys of a recipe's text stand."""

    def __init__(self, text: str) -> None:
        self.lines = text.splitlines()
        self.rules = [i for i, s in enumerate(self.lines) if re.match(r"\s*\[\[\s*rule\s*\]\]", s)]

    def error(self, rule: int | None, key: str, message: str) -> RecipeError:
        start = self.rules[rule] if rule is not None and rule < len(self.rules) else 0
        later = [i for i in self.rules if i > start]
        stop = later[0] if later else len(self.lines)
        for i in range(start, stop):
            if re.search(rf"(^|[\s.{{,\"]){re.escape(key)}[\"\s]*(=|\]|\.)", self.lines[i]):
                return RecipeError(f"line {i + 1}: {message}")
        return RecipeError(f"line {start + 1}: {message}")

    def check_keys(
        self, table: dict[str, Any], known: set[str], what: str, rule: int | None = None
    ) -> None:
        for key in table:
            if key not in known:
                raise self.error(rule, key, str(unknown_name(f"{what} key", key, known)))


def _rule(table: dict[str, Any], lines: _Lines, index: int) -> Rule:
    fields = {f.name for f in dataclasses.fields(Rule)}
    lines.check_keys(table, fields, "rule", index)
    try:
        given = {k: v for k, v in table.items() if k not in ROLES}
        for role in ROLES:
            if role in table:
                given[role] = _operands(table[role], lines, index, role)
        return Rule(**given)
    except RecipeError as error:
        raise (
            error if str(error).startswith("line ") else lines.error(index, "rule", str(error))
        ) from None


def _operands(table: Any, lines: _Lines, rule: int, role: str) -> Operands:
    if not isinstance(table, dict):
        raise lines.error(rule, role, f"{role} is a table of operands, got {table!r}")
    lines.check_keys(table, set(KINDS), f"{role} operand", rule)
    fields = {f.name for f in dataclasses.fields(Quantization)} - {"axis"}
    made: dict[str, Quantization] = {}
    for kind, spec in table.items():
        if not isinstance(spec, dict):
            raise lines.error(rule, kind, f"{role}.{kind} is a table such as {{ format = 'int8' }}")
        lines.check_keys(spec, fields, "quantization", rule)
        if "format" not in spec:
            raise lines.error(rule, kind, f"{role}.{kind} needs a format")
        try:
            made[kind] = Quantization(**spec)
        except (ValueError, TypeError) as error:
            raise lines.error(rule, kind, f"{role}.{kind}: {error}") from None
    return Operands(**made)


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
) -> Recipe:
    """All three products quantized; ``hadamard`` transforms the inputs of wgrad."""
    turn = lambda q: dataclasses.replace(q, hadamard=hadamard)  # noqa: E731
    rule = Rule(
        fprop=Operands(activation=activation, weight=weight),
        dgrad=Operands(gradient=gradient, weight=weight),
        wgrad=Operands(activation=turn(activation), gradient=turn(gradient)),
    )
    return Recipe(name=name, rules=(_ATTENTION, *ends, rule))


def _forward_only(name: str, activation: Quantization, weight: Quantization) -> Recipe:
    rule = Rule(fprop=Operands(activation=activation, weight=weight))
    return Recipe(name=name, rules=(_ATTENTION, rule))


def _same(name: str, format: str, **options: Any) -> Recipe:
    """One format everywhere: nearest forward, stochastic gradients."""
    hadamard = options.pop("hadamard", False)
    ends = options.pop("ends", ())
    gradient = options.pop("gradient", {})
    weight = options.pop("weight", {})
    return _training(
        name,
        _q(format, **options),
        _q(format, **{**options, **weight}),
        _q(format, rounding="stochastic", **{**options, **gradient}),
        hadamard=hadamard,
        ends=ends,
    )


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
        _same("mxfp4", "mxfp4", gradient={"scale_rounding": "up"}, hadamard=True, ends=_ENDS),
        _same("nvfp4", "nvfp4", weight={"granularity": "square"}, hadamard=True, ends=_ENDS),
        _same(
            "nvfp4-unbiased",
            "nvfp4",
            weight={"granularity": "square"},
            gradient={"scale_rounding": "up"},
            hadamard=True,
            ends=_ENDS,
        ),
        Recipe(
            name="bf16-sr",
            rules=(Rule(keep="the recipe bf16-sr leaves matrix multiplications alone"),),
        ),
    )
}


def get(recipe: str | os.PathLike[str] | Recipe) -> Recipe:
    """The recipe with that name, from that ``.toml`` file, or the recipe itself.

    Raises:
      ValueError: no recipe has that name; the nearest are listed.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, os.PathLike) or str(recipe).endswith(".toml"):
        return Recipe.load(recipe)
    if recipe not in BUILTIN:
        raise unknown_name("recipe", recipe, [*BUILTIN, "auto"])
    return BUILTIN[recipe]


def names() -> tuple[str, ...]:
    """The built-in recipes' names."""
    return tuple(BUILTIN)
