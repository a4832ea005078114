"""Evaluates one scope of a program: what is quantized in it, and from which keys.

Codes are shared: an evaluator remembers what it has quantized, by (token, quantization). Loops and
calls take codes in and hand codes out where a site on the other side reads the same value, but no
turned copies of them; and amaxes where one computes it again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax import lax

from srjit import _compat
from srjit.jaxprs import coefficients
from srjit.jaxprs.equations import bind
from srjit.jaxprs.figures import measured
from srjit.jaxprs.gathered import Gather, collective
from srjit.jaxprs.observation import NOTHING, Shown, rounding_of, rounding_of_write
from srjit.jaxprs.site import after, bind_site
from srjit.jaxprs.write_back import exactly, round_write_back
from srjit.numerics.groups import Groups
from srjit.numerics.quantization import Quantization
from srjit.numerics.random_bits import Key, mix
from srjit.numerics.scaling import UNSEEN
from srjit.numerics.shards import of_shards
from srjit.numerics.symbolic import word
from srjit.planning.coefficients import Coefficient
from srjit.planning.noise import Draw
from srjit.planning.plan import ProgramPlan
from srjit.planning.planned_site import Amax, Operand, Shared
from srjit.planning.site import listed
from srjit.products.quantized import ScaledValues
from srjit.program.control_flow import ControlFlow, flow_of
from srjit.program.protocols import Equation, Program, Variable, is_literal
from srjit.program.site_names import scope_of
from srjit.program.values import Path
from srjit.targets.operand import quantize_operand, quantize_together
from srjit.targets.target import Demand

Kept = Shared | Amax | Coefficient
Codes = dict[Kept, Any]  # ScaledValues, scalars, and coefficients with their codes
State = dict[str, jax.Array]  # of delayed scales, by name
# Their numbers begin where no site's and no trip's gets to.
_WRITE_BACKS, _COEFFICIENTS = 2**31, 2**31 + 2**30


@dataclasses.dataclass(frozen=True)
class Trip:
    """The iteration of an enclosing loop, and its length if that is known."""

    number: jax.Array
    length: int | None

    def counted(self, backwards: bool) -> Any:
        """Its number, counted from the last iteration if ``backwards``."""
        if not backwards or self.length is None:
            return self.number
        return word(self.length - 1) - self.number


class Evaluator:
    """Evaluates one scope: the program, or the body of a loop, branch or call.

    Attributes:
      shown: the values and figures that it shows.
    """

    def __init__(
        self,
        plan: ProgramPlan,
        key: Key | None,
        path: Path,
        trips: tuple[Trip, ...],
        histories: State,
        shown: Shown = NOTHING,
    ) -> None:
        self.shown = shown
        self.plan, self.root, self.path, self.trips = plan, key, path, trips
        self.histories = histories
        self.observed: State = {}
        self.codes: Codes = {}
        self.stacked: Codes = {}
        self._keys: dict[tuple[bool, ...], Key] = {}
        self._gathers: dict[Path, Gather] = {}

    # ------------------------------------------------------------------------------- the loop

    def run(self, jaxpr: Program, consts: Sequence[Any], args: Sequence[Any]) -> list[Any]:
        """The outputs of a jaxpr that is this scope."""
        env: dict[Any, Any] = {}

        def read(v: Variable) -> Any:
            return v.val if is_literal(v) else env[v]

        env.update(zip(jaxpr.constvars, consts, strict=True))
        env.update(zip(jaxpr.invars, args, strict=True))
        exact: dict[Any, Any] = {}  # what is rounded in env, and write-backs need before that
        found, kept = self.plan.write_backs, self.plan.coefficients
        gathers = set(self.plan.gathers.values())
        for index, eqn in enumerate(jaxpr.eqns):
            path = (*self.path, index)
            values = [read(v) for v in eqn.invars]
            if path in gathers:
                again = functools.partial(_bound_to_one, eqn)
                self._gathers[path] = collective(eqn, values[0], again)
            with _compat.source_of(eqn):
                if path in found.writes:
                    outs = [self._written(exactly(eqn, _unrounded(eqn, values, exact)), path)]
                elif path in kept.read:
                    c = kept.read[path]
                    outs = [coefficients.scaled(c, self.codes[c], read(c.cotangent))]
                else:
                    outs = self._equation(eqn, path, values)
                if path in found.widened:
                    exact[eqn.outvars[0]] = exactly(eqn, _unrounded(eqn, values, exact))
                env.update(zip(eqn.outvars, outs, strict=True))
                for c in kept.made.get(path, ()):
                    key = mix(self._key(()), _COEFFICIENTS + c.number)
                    self.codes[c] = coefficients.keep(c, read, key, self.plan.settings.rng)
        return [read(v) for v in jaxpr.outvars]

    def _equation(self, eqn: Equation, path: Path, values: list[Any]) -> Sequence[Any]:
        site = self.plan.sites.get(path)
        scope = scope_of(site.row.site.number) if site else None
        with jax.named_scope(scope) if scope else contextlib.nullcontext():
            try:
                if path in self.plan.rewritten:
                    return [self._site(path, values)]
                flow = flow_of(eqn) if path in self.plan.scopes else None
                return bind(eqn, values) if flow is None else self._flow(eqn, flow, path, values)
            except FloatingPointError as error:  # of jax_debug_nans or jax_debug_infs
                inside = [s.row for at, s in self.plan.sites.items() if at[: len(path)] == path]
                if not inside or str(error).startswith("site "):
                    raise
                where = listed([row.described() for row in inside], 3)
                raise FloatingPointError(f"{where}: {error}") from error

    def _flow(
        self, eqn: Equation, flow: ControlFlow, path: Path, values: list[Any]
    ) -> Sequence[Any]:
        raise NotImplementedError

    def _written(self, wide: jax.Array, path: Path) -> jax.Array:
        write = self.plan.write_backs.writes[path]
        key = mix(self._key(()), _WRITE_BACKS + write.number)
        # A copy on every device is rounded the same way on all of them.
        varies = self.plan.provenance.varies.get(path, frozenset[str]())
        key = of_shards(key, varies)
        round_it = functools.partial(round_write_back, write.dtype, self.plan.settings.rng)
        if self.shown.observer is not None:
            seen = rounding_of_write(write, round_it)
            self.shown.observer(seen, self._where((), varies), wide, key, ())
        return round_it(key, wide)

    # --------------------------------------------------------------------------------- sites

    def _site(self, path: Path, values: list[Any]) -> Any:
        site = self.plan.sites[path]
        params, key = site.params, None
        assert params is not None
        x, w, *extras = values
        codes: dict[int, ScaledValues | None] = {}
        for operand in sorted(site.operands, key=lambda o: o.waits):
            side, other = operand.side, codes.get(1 - operand.side)
            value, product = values[side], params.product
            scale = None if other is None else other.scale
            codes[side] = self._quantized(
                operand,
                product.mask(side, value, *extras),
                product.groups_of(side, value.shape, *extras),
                values[1 - side] if scale is None else scale,
                self._gathers.get(self.plan.gathers.get((path, side), ())),
            )
        lhs, rhs = codes[0], codes[1]
        if params.needs_key and self.root is None:  # a call that nothing can differentiate
            params = dataclasses.replace(params, backward=(), wire=None)
        elif params.needs_key:
            key = of_shards(mix(self._key(()), site.number), site.varies)
        return bind_site(params, x, w, extras, lhs, rhs, key)

    def _quantized(
        self,
        operand: Operand,
        x: jax.Array,
        groups: Groups | None,
        begun: jax.Array,
        gather: Gather | None,
    ) -> ScaledValues | None:
        """An operand's codes, after ``begun`` if it waits; with them, others by one read of it."""
        shared = operand.shared
        if shared is None:
            return None
        if shared not in self.codes:
            wanted = self._together(shared) or {shared: operand}
            if operand.waits and (len(wanted) > 1 or Amax(shared.first) not in self.codes):
                x = after(x, begun)
            missing = {s: first for s, first in wanted.items() if s not in self.codes}
            keys = {s: self._noise(first) for s, first in missing.items()}
            turned = self.plan.sharing.turned
            demands = [self._demand(s.spec, turned=s in turned) for s in missing]
            made = quantize_together(x, demands, list(keys.values()), self.plan.settings.target)
            if made is None:  # one by one is as good, and others when they are wanted
                keys = {shared: keys[shared]}
                made = [
                    self._quantized_alone(
                        shared, missing[shared], x, keys[shared], groups, begun, gather
                    )
                ]
            for s, key in keys.items():
                self._show(s, missing[s], x, key, groups)
            self.codes.update(zip(keys, made, strict=True))
        return self.codes[shared]

    def _together(self, shared: Shared) -> dict[Shared, Operand] | None:
        """All quantizations of a value wanted here, where one read of it can give several."""
        if self.plan.settings.target.quantize_together is None:
            return None
        return self.plan.sharing.together.get((self.path, shared))

    def _noise(self, operand: Operand) -> Key | None:
        if not operand.draws or self.root is None:
            return None
        return of_shards(self.drawn(operand.draw), operand.varies)

    def _quantized_alone(
        self,
        shared: Shared,
        operand: Operand,
        x: jax.Array,
        key: Key | None,
        groups: Groups | None,
        begun: jax.Array,
        gather: Gather | None,
    ) -> ScaledValues:
        sharing, kept = self.plan.sharing, Amax(shared.first)
        before, signs = self._before(operand), self._signs(operand)
        if kept in self.codes:
            before = after(self.codes[kept], begun) if operand.waits else self.codes[kept]
        demand = self._demand(
            shared.spec,
            in_memory=operand.in_memory,
            turned=shared in sharing.turned,
            shows=sharing.keeps(shared.first) and before is None,
        )
        target = self.plan.settings.target
        if gather is None:
            q = quantize_operand(x, demand, key, target, before, signs, groups)
        else:
            q = gather.codes(x.dtype, demand, target, before)
        if q.seen is not None and operand.history is not None:
            self.observe({operand.history: q.seen})
        elif q.seen is not None:
            self.codes[kept] = q.seen
        return dataclasses.replace(q, seen=None)

    def _demand(self, spec: Quantization, **known: bool) -> Demand:
        """A quantization in this scope; ``known`` is of the operand."""
        return Demand(spec, self.plan.settings.rng, in_loop=bool(self.trips), **known)

    def _signs(self, operand: Operand) -> Key | None:
        """The key of random signs, the same for all shards, since it is one contraction."""
        if operand.signs is None or self.root is None:
            return None
        return self.drawn(operand.signs)

    def _before(self, operand: Operand) -> jax.Array | None:
        """The largest amax of earlier steps, for a delayed scale."""
        return None if operand.history is None else largest(self.histories[operand.history])

    def _show(
        self, shared: Shared, operand: Operand, x: Any, key: Key | None, groups: Groups | None
    ) -> None:
        """Hands out the figures of a quantization; shows the observer noise of single elements."""
        if shared.again:
            return
        name = self.shown.measured.get(operand)
        if name is not None:
            flips = self._signs(operand) is not None
            given = shared.spec, key, self._before(operand), flips
            self.observe({name: measured(x, *given, groups)})
        if self.shown.observer is None or key is None or operand.signs is not None:
            return
        target = self.plan.settings.target
        demand = self._demand(shared.spec, in_memory=operand.in_memory)
        seen = rounding_of(operand, demand, target)
        where = self._where(operand.draw.flips, operand.varies)
        given = self._before(operand), groups
        self.shown.observer(seen, where, x, key, given)

    def _where(self, flips: tuple[bool, ...], varies: Iterable[str]) -> list[Any]:
        """The execution: trips of the loops around this scope, then shards."""
        trips = [trip.counted(bool(flip)) for trip, flip in self._counting(flips)]
        return [*trips, *map(lax.axis_index, sorted(varies))]

    def _counting(self, flips: tuple[bool, ...]) -> Iterable[tuple[Trip, bool | None]]:
        return itertools.zip_longest(self.trips, flips)

    def observe(self, seen: State) -> None:
        """Adds what delayed scales saw; a value that is quantized in two places has one history."""
        for name, amax in seen.items():
            before = self.observed.get(name)
            self.observed[name] = amax if before is None else jnp.maximum(before, amax)

    def states(self, path: Path) -> list[str]:
        """Names of the histories and the figures that leave the scope at ``path``."""
        return [*self.plan.states(path), *self.shown.inside(path)]

    def seen(self, path: Path) -> State:
        """The amax of every delayed scale inside the scope at ``path``."""
        return {n: self.observed.get(n, unseen(self.histories[n])) for n in self.states(path)}

    def drawn(self, draw: Draw) -> Key:
        """The key of a draw in this scope."""
        return mix(mix(self._key(draw.flips), draw.number), draw.slot)

    def _key(self, flips: tuple[bool, ...]) -> Key:
        """mix(... mix(mix(key, trip), trip) ...), trips of the loops around the site."""
        assert self.root is not None
        if flips not in self._keys:
            key = self.root
            for trip, flip in self._counting(flips):
                key = mix(key, trip.counted(bool(flip)))
            self._keys[flips] = key
        return self._keys[flips]

    # ------------------------------------------------------------------- scopes inside this one

    def inner(self, path: Path, trip: Trip | None = None) -> Self:
        """The evaluator of a scope at ``path``, knowing the codes of the values that enter it."""
        trips = (*self.trips, trip) if trip else self.trips
        return type(self)(self.plan, self.root, path, trips, self.histories, self.shown)

    def entering(self, path: Path, positions: Sequence[int], stacked: bool = False) -> list[Kept]:
        """The codes that sites inside the scope at ``path`` want.

        That is codes of its inputs at ``positions``, amaxes of what is computed again, and
        coefficients.
        """
        known = self.stacked if stacked else self.codes
        sharing = self.plan.sharing
        provenance = self.plan.provenance
        tokens = {provenance.tokens.get((path, i)) for i in positions}
        if stacked:
            tokens |= {provenance.unstacked(t) for t in tokens}
        codes = [s for s in sharing.uses.get(path, ()) if s.token in tokens and s in known]
        read = [c for c in known if isinstance(c, Coefficient) and c.is_read_in(path)]
        return [*codes, *(amax for amax in sharing.amaxes_for(path) if amax in known), *read]

    def leaving(self, inner: Evaluator, path: Path) -> tuple[list[Kept], list[Kept]]:
        """The codes made inside the scope at ``path`` (plain, stacked) that sites outside want."""
        sharing = self.plan.sharing

        def outside(kept: Kept, path: Path) -> bool:
            if isinstance(kept, Coefficient):
                return not kept.is_read_in(path)
            if isinstance(kept, Amax):
                return sharing.wanted_after(kept, path)
            return sharing.read_outside(kept, path)

        plain = [s for s in inner.codes if s not in self.codes and outside(s, path)]
        return plain, [s for s in inner.stacked if s not in self.stacked and outside(s, path)]

    def hoist(self, path: Path, invariants: Mapping[int, Any], begun: Sequence[Any]) -> None:
        """Quantizes loop-invariant operands once, before the loop.

        Args:
          path: of the loop's body.
          invariants: inputs of it, by position.
          begun: values that are there when the loop begins.
        """
        for position, value in invariants.items():
            token = self.plan.provenance.tokens.get((path, position))
            for shared in self.plan.sharing.uses.get(path, ()):
                is_new = shared.token == token and shared not in self.codes
                if is_new and shared.spec.is_hoistable:
                    settings = self.plan.settings
                    value = after(value, begun) if shared.again else value
                    demand = Demand(shared.spec, settings.rng, in_memory=True)
                    self.codes[shared] = quantize_operand(value, demand, None, settings.target)


def alone(kept: Any) -> Any:
    """Amaxes and codes as they leave or enter a scope: without what came beside them."""
    return kept.alone if isinstance(kept, ScaledValues) else kept


def _unrounded(eqn: Equation, values: Sequence[Any], exact: dict[Any, Any]) -> list[Any]:
    """An equation's operands, unrounded where that is known."""
    return [
        value if is_literal(v) else exact.get(v, value)
        for v, value in zip(eqn.invars, values, strict=True)
    ]


def largest(history: jax.Array) -> jax.Array:
    """The largest amax that a history, or that of each group, has of earlier steps."""
    return jnp.max(history, axis=-1)


def unseen(history: jax.Array) -> jax.Array:
    """A history's amax of a step that did not quantize the tensor."""
    return jnp.full(history.shape[:-1], UNSEEN, jnp.float32)


def _bound_to_one(eqn: Any, x: Any) -> Any:
    return bind(eqn, [x])[0]
