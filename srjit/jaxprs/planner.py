"""From a classified product to a plan: which recipe rule decides, and what the operands become."""

from __future__ import annotations

import collections
import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax

from srjit.jaxprs.provenance import DATA, Occurrence, Path, Provenance, visible
from srjit.jaxprs.roles import Classified, classify
from srjit.jaxprs.site import Backward, SiteParams, oriented, quantize_operand
from srjit.numerics.products import DotProduct, PrimitiveProduct, Product
from srjit.numerics.quantization import Quantization, ScaledValues
from srjit.numerics.random_bits import Key, Rng
from srjit.plan import Report, Site, SitePlan
from srjit.recipes import BUILTIN, Operands, Recipe, Rule
from srjit.targets import Target

HISTORY = 16  # steps whose amax a delayed scale looks back on
_FLOATS = ("float16", "bfloat16", "float32", "float64")


Shared = tuple[int, Quantization]  # (token, quantization): equal ones are the same codes


@dataclasses.dataclass(frozen=True)
class Draw:
    """Where the noise of one quantization comes from.

    Attributes:
      number: of the first site that quantizes the value so.
      slot: which of that site's quantizations it is.
      flips: for each loop around this site, whether its trips count the other way round than those
        of the first site, whose value this one recomputes.
    """

    number: int
    slot: int
    flips: tuple[bool, ...]


@dataclasses.dataclass(frozen=True)
class PlannedSite:
    """A site to be rewritten.

    Attributes:
      params: the static part of the site primitive.
      number: what the noise of its gradients comes from, should they be taken.
      lhs, rhs: what their codes are: sites of equal ones share them.
      draws: of both operands.
      varies: mesh axes over which the operands differ, and a gradient where types do not tell.
      states: names of the histories that delayed scales of the operands come from.
      in_memory: whether the operands are there before the program starts: no operation makes them
        that could do some of the quantizing.
    """

    params: SiteParams
    number: int
    lhs: Shared | None
    rhs: Shared | None
    draws: tuple[Draw, Draw]
    varies: tuple[frozenset[str], frozenset[str], frozenset[str]]
    states: tuple[str | None, str | None] = (None, None)
    in_memory: tuple[bool, bool] = (False, False)

    def operands(self) -> list[Shared]:
        """The operands that are quantized."""
        return [s for s in (self.lhs, self.rhs) if s]


@dataclasses.dataclass(frozen=True)
class ProgramPlan:
    """Every site of a program, by where it stands, and the report of it."""

    sites: dict[Path, PlannedSite]
    report: Report
    provenance: Provenance
    settings: Settings

    def quantize(
        self,
        x: jax.Array,
        spec: Quantization,
        key: Key | None,
        amax: jax.Array | None = None,
        *,
        in_memory: bool = False,
    ) -> ScaledValues:
        """An operand's codes."""
        target, rng = self.settings.target.name, self.settings.rng
        return quantize_operand(
            x, spec, key, rng=rng, target=target, amax=amax, in_memory=in_memory
        )

    @functools.cached_property
    def histories(self) -> dict[str, tuple[int, ...]]:
        """The shape of every history of delayed scales: lengths of the loops around it, steps."""
        loops = {o.scope.path: o.scope.loops for o in self.provenance.occurrences}
        return {
            name: (*(n for n, _ in loops[path] if n is not None), HISTORY)
            for path, site in self.sites.items()
            for name in site.states
            if name is not None
        }

    def states(self, scope: Path) -> list[str]:
        """Names of the histories that sites inside ``scope`` need."""
        inside = (s for path, s in self.sites.items() if path[: len(scope)] == scope)
        names = (name for site in inside for name in site.states if name is not None)
        return list(dict.fromkeys(names))

    @functools.cached_property
    def numbers(self) -> dict[Path, int]:
        """The number of every site, also of those that are kept."""
        return {o.path: number for number, o in enumerate(self.provenance.occurrences)}

    @functools.cached_property
    def scopes(self) -> frozenset[Path]:
        """Paths of the equations that have sites inside."""
        return frozenset(path[:n] for path in self.sites for n in range(1, len(path)))

    @functools.cached_property
    def uses(self) -> dict[Path, list[Shared]]:
        """For each scope, what its sites read, in order."""
        uses: dict[Path, dict[Shared, None]] = collections.defaultdict(dict)
        for path, site in self.sites.items():
            for n in range(len(path)):
                uses[path[:n]].update((s, None) for s in site.operands())
        return {scope: list(found) for scope, found in uses.items()}

    @functools.cached_property
    def _readers(self) -> dict[Shared, list[Path]]:
        readers: dict[Shared, list[Path]] = collections.defaultdict(list)
        for path, site in self.sites.items():
            for shared in site.operands():
                readers[shared].append(path)
        return readers

    def read_outside(self, shared: Shared, scope: Path) -> bool:
        """Whether a site outside ``scope`` reads the same codes, and they can get there.

        They can where the value itself enters every scope on the way, so nothing that a user chose
        to recompute is saved instead.
        """

        def reaches(path: Path) -> bool:
            enclosing = [path[:n] for n in range(1, len(path))]
            inputs = self.provenance.inputs
            return all(
                shared[0] in inputs[e] for e in enclosing if e in inputs and e != scope[: len(e)]
            )

        return any(p[: len(scope)] != scope and reaches(p) for p in self._readers[shared])

    @functools.cached_property
    def draws_forward(self) -> bool:
        """Whether the program itself draws noise."""
        return any(q.rounding == "stochastic" for s in self.sites.values() for _, q in s.operands())

    @functools.cached_property
    def draws_backward(self) -> bool:
        """Whether differentiating the program draws noise."""
        return any(s.params.needs_key for s in self.sites.values())


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a user chose."""

    recipe: Recipe
    target: Target
    mode: str = "train"
    rng: Rng = "hash"


def make_plan(closed: Any, labels: Sequence[str], settings: Settings) -> ProgramPlan:
    """Plans a closed jaxpr whose inputs carry ``labels``."""
    provenance = Provenance(closed, labels)
    classified = classify(provenance)
    differentiable = all(c.phase == "forward" for c in classified)
    return plan_of(provenance, classified, settings, differentiable)


def plan_of(
    provenance: Provenance,
    classified: Sequence[Classified],
    settings: Settings,
    differentiable: bool,
) -> ProgramPlan:
    """Plans a program whose products have roles.

    Args:
      provenance: of the program.
      classified: all its products, in execution order.
      settings: what a user chose.
      differentiable: whether the program may still be differentiated from outside.
    """
    recipe = settings.recipe
    if settings.mode == "inference":
        recipe = recipe.with_rounding(activations="nearest", weights="nearest", gradients="nearest")
    noise = _Noise()
    ends = _ends(classified, recipe)
    sites: dict[Path, PlannedSite] = {}
    plans: list[SitePlan] = []
    used: set[int] = set()
    for c in classified:
        planner = _SitePlanner(c, settings, recipe, ends, used, differentiable)
        plan = planner.plan()
        plans += [plan, *plan.backward]
        if plan.status != "kept" or any(b.status != "kept" for b in plan.backward):
            sites[c.occurrence.path] = planner.planned(plan, provenance, noise)
    return ProgramPlan(
        sites,
        Report(
            sites=tuple(plans),
            recipe=settings.recipe.name,
            target=settings.target.name,
            mode=settings.mode,
            notes=(
                *_opaque_notes(provenance),
                *_argument_notes(provenance, classified, plans),
                *_random_notes(provenance, settings.mode),
                *_unused_notes(recipe, used),
            ),
        ),
        provenance,
        settings,
    )


class _Noise:
    """Tells every quantization whose noise is its own, and whose history.

    A value that is quantized again, as in a recomputation, takes the noise and the history that it
    had when it was quantized first.
    """

    def __init__(self) -> None:
        self._first: dict[Shared, tuple[int, int, tuple[Any, ...]]] = {}
        # Of delayed scales: the history of a value, by the lengths of the loops around.
        self.states: dict[tuple[Shared, tuple[int, ...]], str] = {}

    def draw(self, o: Occurrence, number: int, slot: int, shared: Shared) -> Draw:
        """The noise of one operand of the site with that number."""
        loops = o.scope.loops
        number, slot, others = self._first.setdefault(shared, (number, slot, loops))
        pairs = itertools.zip_longest(loops, others[: len(loops)], fillvalue=(None, False))
        return Draw(number, slot, tuple(a[1] != b[1] and a[0] == b[0] for a, b in pairs))


def _ends(classified: Sequence[Classified], recipe: Recipe) -> set[int]:
    """Origins of the forward weight products that the recipe keeps at the program's two ends."""
    weighted = [
        c.occurrence.out.origin
        for c in classified
        if c.phase == "forward" and "weight" in (c.lhs_kind, c.rhs_kind)
    ]
    last = weighted[len(weighted) - recipe.keep_last :] if recipe.keep_last else []
    return {*weighted[: recipe.keep_first], *last}


def _opaque_notes(provenance: Provenance) -> list[str]:
    places: dict[tuple[str, str], list[str]] = collections.defaultdict(list)
    for o in provenance.opaque:
        place = "/".join(visible(o.scope.names)) or o.location or "top level"
        if place not in places[o.name, o.why]:
            places[o.name, o.why].append(place)
    return [
        f"{name} at {', '.join(at[:8])}{f' and {len(at) - 8} more' if len(at) > 8 else ''} "
        f"left alone: {why}"
        for (name, why), at in places.items()
    ]


def _argument_notes(
    provenance: Provenance, classified: Sequence[Classified], plans: Sequence[SitePlan]
) -> list[str]:
    """Arguments that may hold weights: the frozen base of LoRA."""
    kept = {p.site.number for p in plans if p.status == "kept" and p.rule and not p.asked}
    found = [
        str(c.number)
        for c in classified
        if c.number in kept and c.phase == "forward" and c.lhs_kind == c.rhs_kind == "activation"
        if any(provenance.given.get(v.origin) == DATA for v in c.occurrence.operands)
    ]
    if not found:
        return []
    return [
        f"kept as products of two activations, one of them an argument: sites {', '.join(found)}; "
        "if the argument holds weights, frozen ones too, name it in params_argnums"
    ]


def _random_notes(provenance: Provenance, mode: str) -> list[str]:
    if mode != "inference" or not provenance.random:
        return []
    places = ", ".join(dict.fromkeys(provenance.random))
    return [f"the function draws random numbers of its own, as in dropout, which stay: {places}"]


# What built-in recipes keep, if a model has it, is not missed where it has not.
_IF_THERE = frozenset(rule for r in BUILTIN.values() for rule in r.rules if rule.keep)


def _unused_notes(recipe: Recipe, used: set[int]) -> list[str]:
    return [
        f"{recipe.name_of(rule)} matched no site"
        for i, rule in enumerate(recipe.rules)
        if i not in used and rule not in _IF_THERE
    ]


def product_of(eqn: Any) -> Product | None:
    """The product that an equation computes; None where srjit has no rule for its form."""
    ranks = tuple(v.aval.ndim for v in eqn.invars[:2])
    return product_from(eqn.primitive, eqn.params, ranks)


def product_from(primitive: Any, params: Any, ranks: tuple[int, ...]) -> Product | None:
    """The product of a primitive with its parameters, for operands of these ranks."""
    if primitive.name == "dot_general":
        out_sharding = params.get("out_sharding")
        return DotProduct.of(
            params["dimension_numbers"], (ranks[0], ranks[1]), params["precision"], out_sharding
        )
    if primitive.name == "conv_general_dilated":
        return PrimitiveProduct.convolution(primitive, dict(params))
    return PrimitiveProduct.ragged(primitive, dict(params), ranks[0])


def flops_of(eqn: Any) -> int:
    """Multiplications and additions of one execution; rows past the groups are counted."""
    lhs, rhs = (v.aval for v in eqn.invars[:2])
    out = eqn.outvars[0].aval
    params = eqn.params
    if eqn.primitive.name == "conv_general_dilated":
        kernel = params["dimension_numbers"].rhs_spec
        return 2 * out.size * rhs.size // max(rhs.shape[kernel[0]], 1)
    if eqn.primitive.name == "dot_general":
        (contract, _), _ = params["dimension_numbers"]
        return 2 * out.size * math.prod(lhs.shape[d] for d in contract)
    numbers = params["ragged_dot_dimension_numbers"]
    (contract, _), _ = numbers.dot_dimension_numbers
    groups = out.shape[0] if set(numbers.lhs_ragged_dimensions) & set(contract) else 1
    return 2 * out.size * math.prod(lhs.shape[d] for d in contract) // max(groups, 1)


def extents_of(eqn: Any) -> tuple[int, int, int]:
    """(rows, columns, contraction); of one group of a convolution, of all of a ragged product."""
    lhs, rhs = (v.aval for v in eqn.invars[:2])
    params = eqn.params
    if eqn.primitive.name == "conv_general_dilated":
        features = max(rhs.shape[params["dimension_numbers"].rhs_spec[0]], 1)
        groups = params["feature_group_count"] * params["batch_group_count"]
        return eqn.outvars[0].aval.size // features, features // groups, rhs.size // features
    grouped: Sequence[int] = ()
    if eqn.primitive.name == "dot_general":
        (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = params["dimension_numbers"]
    else:
        numbers = params["ragged_dot_dimension_numbers"]
        grouped = numbers.rhs_group_dimensions
        (lhs_contract, rhs_contract), (lhs_batch, rhs_batch) = numbers.dot_dimension_numbers

    def free(shape: Sequence[int], *taken: int) -> int:
        return math.prod(n for d, n in enumerate(shape) if d not in taken)

    return (
        free(lhs.shape, *lhs_contract, *lhs_batch),
        free(rhs.shape, *rhs_contract, *rhs_batch, *grouped),
        math.prod(lhs.shape[d] for d in lhs_contract),
    )


class _SitePlanner:
    """Plans one site."""

    def __init__(
        self,
        classified: Classified,
        settings: Settings,
        recipe: Recipe,
        ends: set[int],
        used: set[int],
        differentiable: bool,
    ) -> None:
        self.c, self.settings, self.recipe = classified, settings, recipe
        self.ends, self.used = ends, used
        self.differentiable = differentiable and settings.mode == "train"
        o = classified.occurrence
        self.o, self.eqn = o, o.eqn
        self.avals = tuple(v.aval for v in self.eqn.invars[:2])
        self.product = product_of(self.eqn)
        self.site = Site(
            number=classified.number,
            path=classified.path,
            role=classified.role,
            phase=classified.phase,
            op=self.eqn.primitive.name,
            lhs_kind=classified.lhs_kind,
            rhs_kind=classified.rhs_kind,
            lhs_shape=self.avals[0].shape,
            rhs_shape=self.avals[1].shape,
            out_shape=self.eqn.outvars[0].aval.shape,
            dtype=str(self.eqn.outvars[0].aval.dtype),
            flops=flops_of(self.eqn),
            trips=math.prod(n for n, _ in o.scope.loops if n),
            location=o.location,
            why=classified.why,
        )
        if self.differentiable and o.scope.ruled and self._impossible() is None:
            why = f"{classified.why}; differentiated by its function's own rule, in high precision"
            self.differentiable, self.site = False, dataclasses.replace(self.site, why=why)

    def plan(self) -> SitePlan:
        """What becomes of the site, and of its gradients should it be differentiated."""
        forward = self._decide(self.site)
        backward: tuple[SitePlan, ...] = ()
        if self.differentiable and self.c.role == "fprop" and self._impossible() is None:
            backward = tuple(self._decide(s) for s in self._gradient_sites())
        return dataclasses.replace(forward, backward=backward)

    def planned(self, plan: SitePlan, provenance: Provenance, noise: _Noise) -> PlannedSite:
        """The site primitive's parameters, and what its codes and its noise are."""
        product, o, number = self.product, self.o, self.c.noise
        assert product is not None
        if isinstance(product, DotProduct) and o.is_turned:
            product = dataclasses.replace(product, is_turned=True)
        specs = [
            q and oriented(q, product, side, self.avals[side].shape)
            for side, q in enumerate((plan.lhs, plan.rhs))
        ]
        shared: list[Shared | None] = [None, None]
        draws = [Draw(number, side, ()) for side in (0, 1)]
        for side, q in enumerate(specs):
            if q is None:
                continue
            token = o.operands[side].token
            if product.masks(side):  # other codes than those of the same value unmasked
                token = provenance.derived("masked", token, *(v.token for v in o.extras))
            shared[side] = (token, q)
            draws[side] = noise.draw(o, number, side, (token, q))
        backward: list[Backward | None] = [None, None]
        for side, b in enumerate(plan.backward):
            ct, residual = (b.lhs, b.rhs) if side == 0 else (b.rhs, b.lhs)
            backward[side] = Backward(b.site.role, ct, residual)
        params = SiteParams(
            product=product,
            dtype=self.eqn.outvars[0].aval.dtype,
            lhs=specs[0],
            rhs=specs[1],
            backward=(backward[0], backward[1]),
            extras=len(self.eqn.invars) - 2,
            target=self.settings.target.name,
            rng=self.settings.rng,
            label=self.site.role,
        )
        varies = (o.lhs.varies, o.rhs.varies, o.scope.manual)
        states: list[str | None] = [None, None]
        for side, known in enumerate(shared):
            if known is not None and known[1].scaling == "delayed":
                name = f"{self.site.path or 'site'}#{self.site.number}.{('lhs', 'rhs')[side]}"
                lengths = tuple(n for n, _ in o.scope.loops if n is not None)
                states[side] = noise.states.setdefault((known, lengths), name)
        return PlannedSite(
            params,
            number,
            shared[0],
            shared[1],
            (draws[0], draws[1]),
            varies,
            (states[0], states[1]),
            (o.lhs.origin in provenance.given, o.rhs.origin in provenance.given),
        )

    def _gradient_sites(self) -> list[Site]:
        """The products that differentiating a forward site makes: of its lhs and of its rhs."""
        site = self.site
        kinds = (site.lhs_kind, site.rhs_kind)
        sites: list[Site] = []
        for side in (0, 1):
            role = "wgrad" if kinds[side] == "weight" else "dgrad"
            other = kinds[1 - side]
            pair = ("gradient", other) if side == 0 else (other, "gradient")
            shapes = [site.lhs_shape, site.rhs_shape]
            out, shapes[side] = shapes[side], site.out_shape
            sites.append(
                dataclasses.replace(
                    site,
                    role=role,
                    phase="backward",
                    lhs_kind=pair[0],
                    rhs_kind=pair[1],
                    lhs_shape=shapes[0],
                    rhs_shape=shapes[1],
                    out_shape=out,
                    why="exact: the gradient of this site, if it is taken",
                )
            )
        return sites

    def _decide(self, site: Site) -> SitePlan:
        keep = lambda reason, asked=False: SitePlan(  # noqa: E731
            site=site, lhs=None, rhs=None, status="kept", reason=reason, asked=asked, rule=name
        )
        rule = self._asking(site) if site.role == "unknown" else self._rule(site)
        name = "" if rule is None else self.recipe.name_of(rule)
        wanted = self._wanted(rule, site) if rule else None
        if self.c.keep:
            return keep(self.c.keep)
        if site.role == "unknown":
            return keep(f"unknown role: {self.c.why}", asked=rule is not None)
        impossible = self._impossible()
        if impossible:
            return keep(impossible, asked=self.product is None and wanted is not None)
        if rule is None:
            return keep("no rule of the recipe matches it")
        if rule.keep:
            return keep(rule.keep)
        if (self.c.partner or self.o).out.origin in self.ends:
            return keep("kept in high precision by the recipe: at an end of the network")
        if wanted is None:
            return keep(f"the recipe leaves {site.role} in high precision")
        product = self.product
        if site is not self.site:
            side = 0 if site.lhs_kind == "gradient" else 1
            assert product is not None
            product = product.transpose(side, self.avals[side])
        lhs, rhs = wanted
        if any(q is not None and q.scaling == "delayed" for q in wanted):
            if self.o.scope.ruled:
                why = "delayed scales do not reach into a function with its own derivative rule"
                return keep(why, asked=True)
            if site is not self.site:
                why = "delayed scales of gradients need the whole training step inside srjit"
                return keep(why, asked=True)
        if product is not None and not product.can_rotate:
            dropped = [q and dataclasses.replace(q, hadamard=False) for q in (lhs, rhs)]
            if dropped != [lhs, rhs]:
                lhs, rhs = dropped
                site = dataclasses.replace(
                    site,
                    why=f"{site.why}; no Hadamard transform: it does not cancel in this product",
                )
        native = lhs and rhs and (lhs.format, rhs.format) in self.settings.target.native
        return SitePlan(
            site=site,
            lhs=lhs,
            rhs=rhs,
            status="native" if native else "emulated",
            asked=True,
            rule=name,
        )

    def _asking(self, site: Site) -> Rule | None:
        """The first rule that would quantize a site of unknown role, whatever role it has."""
        possible = ("dgrad", "wgrad") if site.phase == "backward" else ("fprop",)
        for rule in self.recipe.rules:
            for role, weight in itertools.product(possible, (True, False)):
                asks = getattr(rule, role) not in (None, Operands())
                if asks and rule.matches(site.path, site.op, role, weight, self._size()):
                    return rule
        return None

    def _size(self) -> int:
        return min((n for n in extents_of(self.eqn) if n), default=0)

    def _rule(self, site: Site) -> Rule | None:
        weighted = "weight" in (site.lhs_kind, site.rhs_kind) or site.role == "wgrad"
        for i, rule in enumerate(self.recipe.rules):
            if rule.matches(site.path, site.op, site.role, weighted, self._size()):
                self.used.add(i)
                return rule
        return None

    def _wanted(
        self, rule: Rule, site: Site
    ) -> tuple[Quantization | None, Quantization | None] | None:
        """What the rule says of the two operands; None: nothing."""
        operands: Operands | None = getattr(rule, site.role, None)
        if operands is None or operands == Operands():
            return None
        pair: list[Quantization | None] = []
        for kind in (site.lhs_kind, site.rhs_kind):
            spec = getattr(operands, kind)
            if spec is None and kind == "activation":  # dgrad of attention: as if it were a weight
                spec = operands.weight
            pair.append(spec)
        return (pair[0], pair[1]) if any(pair) else None

    def _impossible(self) -> str | None:
        """Why the site cannot be quantized, whatever the recipe says."""
        dtypes = [str(a.dtype) for a in self.avals]
        if any(d not in _FLOATS for d in dtypes):
            return (
                f"{' x '.join(dtypes)} product: only {', '.join(_FLOATS[:-1])} and {_FLOATS[-1]} "
                "products are quantized"
            )
        if any(a.size == 0 for a in self.avals):
            return "zero-size operand"
        if self.product is None:
            return "ragged batch dimensions are not supported"
        return None
