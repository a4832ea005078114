"""A function with its matrix multiplications quantized: trace, plan, rewrite, evaluate."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from srjit import _compat, _stack
from srjit.api.options import Chosen, Resolved, TransformOptions, check_position, takes
from srjit.calling.arguments import Arguments, Changed
from srjit.calling.keys import (
    IfNeeded,
    MissingKeyError,
    Stateful,
    Uncounted,
    as_argument,
    key_words,
)
from srjit.calling.layout import Layout
from srjit.calling.signature import name_of, parameters_of, signature_with_key
from srjit.choices import unknown_name
from srjit.diagnostics.watch.stream import Watch, Watched
from srjit.jaxprs.evaluator import State
from srjit.jaxprs.observation import Observer, Shown
from srjit.jaxprs.rewrite import evaluate, remembered
from srjit.modules import layer as hlo_call
from srjit.modules.cuts import cuts_of
from srjit.modules.settled import settled
from srjit.numerics.random_bits import Key, warn_of_repetition
from srjit.numerics.shards import may_be_copies, refuse_around, untyped_axes
from srjit.numerics.symbolic import all_known
from srjit.passes.driver.running import Seen, dumping
from srjit.planning.parameters import Argument, Parameters, declared, find, labels_of
from srjit.planning.plan import ProgramPlan
from srjit.planning.planner import make_plan
from srjit.planning.provenance import JaxprSourceInfo
from srjit.planning.site import SitePlan, WriteBack
from srjit.program.casts import cast_first
from srjit.program.dead_code import without_dead_code
from srjit.program.inlining import inlined
from srjit.report.dump import Dump
from srjit.report.report import Report


class UnsupportedSiteError(ValueError):
    """``strict=True``, and a site that the recipe asked for could not be quantized."""


def is_array(x: Any) -> bool:
    """True if a leaf is an array, or stands for one."""
    return isinstance(x, (jax.Array, np.ndarray))


def is_traced(x: Any) -> bool:
    """True if a leaf is what a jitted function is traced with; static arguments are not."""
    return isinstance(x, Tracer) or (_compat.jit_is_disabled() and is_array(x))


@dataclasses.dataclass(frozen=True)
class TracedFunction:
    """A traced function, and what is to become of it.

    Attributes:
      original: as traced.
      closed: without its dead code; the plan is of this.
      plan: of every site.
      shown: what its evaluation shows of itself.
      leaves: the arrays among the arguments.
      parameters: which of them are those of parameters.
      owners: positions or keywords of the arguments that are parameters.
      names: of them: ``params['w']``.
      unflatten: makes (what the function returned, changed state or None) of the outputs.
    """

    original: Any
    closed: Any
    plan: ProgramPlan
    shown: Shown
    leaves: list[Any]
    parameters: frozenset[int]
    owners: tuple[int | str, ...]
    names: list[str]
    unflatten: Callable[[Sequence[Any]], Any]

    @property
    def has_known_shapes(self) -> bool:
        """True if its arguments have numbers of elements: modules are rewritten for those.

        Of others the jaxpr is rewritten, which gives the same bits.
        """
        return all(all_known(leaf.shape) for leaf in self.leaves)

    def evaluate(
        self, words: Key | None, leaves: Sequence[Any], state: State
    ) -> tuple[list[Any], State, list[jax.Array]]:
        """The outputs of the rewritten program, its delayed scales' histories, what is watched."""
        outs, seen = evaluate(self.closed, self.plan, words, leaves, state, self.shown)
        watched = [seen.pop(name) for name in self.shown.measured.values()]
        return outs, {n: remembered(state[n], amax) for n, amax in seen.items()}, watched


@dataclasses.dataclass(frozen=True, kw_only=True)
class Onlookers:
    """Functions that see a program while it is rewritten or runs.

    Attributes:
      module: sees the module after every pass.
      observer: sees what is rounded stochastically.
      stream: gets figures of every quantization that it asks for.
    """

    module: Seen | None = None
    observer: Observer | None = None
    stream: Watch | None = None


class Transformation:
    """A function and how it is to be rewritten; called with a key and the function's arguments."""

    def __init__(
        self,
        fun: Callable[..., Any],
        options: Resolved,
        is_dynamic: Callable[[Any], bool],
        onlookers: Onlookers = Onlookers(),
    ) -> None:
        self.fun, self.options, self.is_dynamic = fun, options, is_dynamic
        self.settings = options.settings
        self.name = name_of(fun)
        self._onlookers = onlookers
        # Who only looks is not warned.
        self._warned = onlookers.module is not None or onlookers.observer is not None

    def __call__(
        self, key: Any, args: Sequence[Any], kwargs: dict[str, Any], layout: Layout = ()
    ) -> Any:
        """Returns what the rewritten function does: in ``Changed`` if it changed objects in place.

        In ``Watched`` if it is streamed.

        Args:
          key: a type of ``srjit.calling.keys``, or None inside another transformation.
          args, kwargs: of the function.
          layout: of these.
        """
        refuse_around(self.name)
        program = self.traced(args, kwargs, layout)
        given = key if isinstance(key, Stateful) else Stateful(key, None)
        words = self._key_words(given.key, program.plan)
        histories = self._histories(given.state, program.plan)
        self.complain(program.plan)
        if self.options.dump:
            self._dump(self.options.dump, program, words, histories)
        watched: list[jax.Array] = []
        if self.options.layer == "stablehlo" and program.has_known_shapes:
            outs, remembered = self._call_module(program, words, histories)
        else:
            outs, remembered, watched = program.evaluate(words, program.leaves, histories)
        if program.plan.rewritten:
            outs = settled(outs, program.leaves)
        out, changes = program.unflatten(outs)
        if given.state is not None:
            out = out, remembered
        out = out if changes is None else Changed(out, changes)
        stream = self._onlookers.stream
        if stream is None:
            return out
        return Watched(out, stream.packed(list(program.shown.measured), watched))

    def _call_module(
        self, program: TracedFunction, words: Key | None, histories: State
    ) -> tuple[list[Any], State]:
        settings, dump, seen = self.settings, self.options.dump, self._onlookers.module
        recipe, closed, first = settings.recipe, program.closed, ()
        if recipe.pays_on:  # shardings are not known where the passes run: they get the choice
            recipe = Report.of(program.plan).forward_only().pinned()
        if words is not None and program.plan.rounds_more:
            closed, first = self._written_back(program, words), words
        chosen = [i in program.parameters for i in range(len(program.leaves))]
        rewriting = hlo_call.Rewriting(
            name=self.name,
            recipe=recipe.without_write_backs(),  # these are done
            target=settings.target,
            mode=settings.mode,
            rng=settings.rng,
            parameters=(*[False] * len(first), *chosen),
            has_key=words is not None,
            states=tuple(histories),
            seen=dumping(dump) if dump and seen is None else seen,
            is_looked_at=self._onlookers.module is not None,
        )
        return hlo_call.call(closed, rewriting, words, histories, [*first, *program.leaves])

    @staticmethod
    def _written_back(program: TracedFunction, words: Key) -> Any:
        """The program, which takes the key words first, with all rounded but its products.

        They are no products: passes find the same sites in it, with the same numbers.
        """
        plan = program.plan.without_sites()

        def fun(words: Key, leaves: Sequence[Any]) -> list[Any]:
            return evaluate(program.closed, plan, words, leaves, {})[0]

        return jax.make_jaxpr(fun)(words, program.leaves)

    def _histories(self, state: Any, plan: ProgramPlan) -> State:
        if state is None and plan.histories:
            raise TypeError(
                f"recipe {self.settings.recipe.name!r} has delayed scales, which are state: call "
                f"{self.name} with sr_state=, at first {self.name}.init_state(...) of the same "
                "arguments; the call then returns (result, new_state)"
            )
        shapes = {} if state is None else {name: jnp.shape(x) for name, x in state.items()}
        if shapes != plan.histories:
            raise ValueError(
                f"sr_state does not fit {self.name} with recipe {self.settings.recipe.name!r}: it "
                f"has {shapes or 'nothing'}, the program needs {plan.histories or 'nothing'}; make "
                "it with init_state(...) of the same arguments"
            )
        return state or {}

    # --------------------------------------------------------------------------------- tracing

    def traced(
        self, args: Sequence[Any], kwargs: dict[str, Any], layout: Layout = ()
    ) -> TracedFunction:
        """The function, traced for these arguments, and planned for this layout of them."""
        given = Arguments.of(args, kwargs)
        numbers = [i for i, leaf in enumerate(given.leaves) if self.is_dynamic(leaf)]
        dynamic = [given.leaves[i] for i in numbers]
        output: list[Any] = []

        def flat(*values: Any) -> list[Any]:
            leaves = list(given.leaves)
            for i, value in zip(numbers, values, strict=True):
                leaves[i] = value
            new_args, new_kwargs, objects = given.rebuild(leaves)
            out = self.fun(*new_args, **new_kwargs)
            results, tree = jax.tree.flatten((out, objects.changes(self.name)))
            traced = [is_array(r) or isinstance(r, (bool, int, float, complex)) for r in results]
            others = [None if t else r for r, t in zip(results, traced, strict=True)]
            output[:] = tree, others, traced
            return [r for r, t in zip(results, traced, strict=True) if t]

        original = cast_first(jax.make_jaxpr(flat)(*dynamic))
        tree, others, traced = output

        def unflatten(results: Sequence[Any]) -> Any:
            values = iter(results)
            filled = [next(values) if t else o for o, t in zip(others, traced, strict=True)]
            return jax.tree.unflatten(tree, filled)

        closed = without_dead_code(inlined(original, self.settings.recipe.residuals is not None))
        names = self._names(given, numbers)
        parameters = self._parameters(closed, given, numbers, len(args))
        labels = labels_of(closed, parameters.inputs)
        cuts = functools.partial(cuts_of, closed, [layout[i] for i in numbers] if layout else [])
        plan = make_plan(closed, labels, self.settings, names, untyped_axes(), cuts)
        notes = (*plan.notes, *filter(None, [parameters.note]), *self._notes(plan))
        plan = dataclasses.replace(plan, notes=notes)
        stream = self._onlookers.stream
        shown = Shown.of(plan, self._onlookers.observer, stream.kinds if stream else ())
        chosen = parameters.inputs
        owners = tuple(dict.fromkeys(given.owners[numbers[i]] for i in sorted(chosen)))
        return TracedFunction(
            original, closed, plan, shown, dynamic, chosen, owners, names, unflatten
        )

    def _parameters(
        self, closed: Any, given: Arguments, numbers: Sequence[int], count: int
    ) -> Parameters:
        """The parameters of a call with ``count`` positional arguments."""
        signature = parameters_of(self.fun) or []
        order: list[int | str] = [*range(count), *(p.name for p in signature), *given.owners]
        first: dict[int | str, int] = {}
        for owner in order:
            first.setdefault(owner, len(first))
        arrays: dict[int | str, list[int]] = {}
        for n, i in enumerate(numbers):
            arrays.setdefault(given.owners[i], []).append(n)
        arguments = {
            owner: Argument(
                self._owner(owner),
                tuple(arrays[owner]),
                any(given.paths[numbers[n]] for n in arrays[owner]),
                owner == 0,
            )
            for owner in sorted(arrays, key=first.__getitem__)
        }
        if self.options.parameters is None:
            return find(closed, list(arguments.values()), JaxprSourceInfo())
        owners = self._chosen(self.options.parameters, given, count)
        chosen = tuple(a for owner, a in arguments.items() if owner in owners)
        return declared(closed, chosen, str(self.options.parameters))

    def _chosen(self, chosen: Chosen, given: Arguments, count: int) -> set[int | str]:
        """The arguments of a call that the user says are parameters."""
        signature = parameters_of(self.fun) or []
        if any(p.kind is p.VAR_POSITIONAL for p in signature):
            for n in chosen.numbers:
                if n:
                    check_position(self.fun, n, count, "was called with")
        numbers = {n % count for n in chosen.numbers if -count <= n < count}
        names = {signature[n].name for n in chosen.numbers if 0 <= n < len(signature)}
        names |= {*chosen.names}
        numbers |= {i for i, p in enumerate(signature[:count]) if p.name in names}
        known = {p.name for p in signature} | {o for o in given.owners if isinstance(o, str)}
        for name in chosen.names:
            if name not in known:
                raise unknown_name("params_argnames", name, known)
        return numbers | names

    def _owner(self, of: int | str) -> str:
        parameters = [p.name for p in parameters_of(self.fun) or ()]
        if isinstance(of, str):
            return of
        return parameters[of] if of < len(parameters) else f"args[{of}]"

    def _names(self, given: Arguments, numbers: Sequence[int]) -> list[str]:
        return [self._owner(given.owners[i]) + given.paths[i] for i in numbers]

    def _notes(self, plan: ProgramPlan) -> Iterator[str]:
        if self.options.layer == "stablehlo" and plan.provenance.unrolled:
            places = ", ".join(plan.provenance.unrolled)
            yield (
                f"scan(unroll=...) at {places}: JAX lowers it to several copies of its body, which "
                "have noise of their own: not the bits of layer='jaxpr'"
            )

    # ------------------------------------------------------------------------------------ keys

    def _key_words(self, key: Any, plan: ProgramPlan) -> Key | None:
        alone = isinstance(key, IfNeeded)
        key = key.key if isinstance(key, IfNeeded) else key
        uncounted = isinstance(key, Uncounted)
        key = None if uncounted else key
        if self.settings.mode == "inference":
            if key is not None:
                raise TypeError("mode='inference' rounds to nearest everywhere and takes no sr_key")
            return None
        alone = alone or self.options.layer == "stablehlo"
        draws = plan.draws_forward or (plan.draws_backward and not alone)
        if key is None and draws:
            raise (MissingKeyError.of_uncounted if uncounted else MissingKeyError.of)(self.name)
        if key is not None and not draws:
            jax.eval_shape(key_words, key)  # a wrong key is wrong, needed or not
        if draws:
            warn_of_repetition(self.name, key)
        return key_words(key) if draws else None

    # --------------------------------------------------------------------------------- telling

    def complain(self, plan: ProgramPlan) -> None:
        """Warns once of what a recipe asked for and is not done; raises if that is strict."""
        report = Report.of(plan)
        asked = (
            (report.with_gradients, "matrix multiplications", "stay in high precision"),
            (report.write_backs, "write-backs", "stay as the program has them"),
        )
        messages = [
            self._missing(given, f"{what} that recipe {report.recipe!r} asks for {stay}")
            for given, what, stay in asked
            if any(_is_missing(s) for s in given)
        ]
        guessed = plan.write_backs.guessed
        messages += [f"{self.name}: {may_be_copies(guessed)}"] if guessed else []
        if plan.shortfall:
            messages.append(f"{self.name}: {plan.shortfall}")
        message = "\n".join(messages)
        if not message or (self._warned and not self.options.strict):
            return
        if self.options.strict:
            raise UnsupportedSiteError(message)
        self._warned = True
        _stack.warn(message)

    def _missing(self, given: Sequence[SitePlan | WriteBack], what: str) -> str:
        missing = [s for s in given if _is_missing(s)]
        lines = [f"  {s.described()}: {s.reason}" for s in missing[:10]]
        if len(missing) > 10:
            lines.append(f"  and {len(missing) - 10} more: see explain()")
        return f"{self.name}: {len(missing)} of {len(given)} {what}:\n" + "\n".join(lines)

    def _dump(
        self, dump: Dump, program: TracedFunction, words: Key | None, histories: State
    ) -> None:
        dump.write("original.jaxpr", str(program.original))
        dump.write("dead-code-eliminated.jaxpr", str(program.closed))
        report = Report.of(program.plan)
        dump.write("plan.txt", str(report))
        dump.write("plan.json", report.to_json())
        if self.options.layer == "stablehlo" and program.has_known_shapes:
            return  # modules, when there are any
        rewritten = jax.make_jaxpr(program.evaluate)(words, program.leaves, histories)
        dump.write("rewritten.jaxpr", str(rewritten))


def no_histories(plan: ProgramPlan) -> State:
    """Histories that remember nothing, one for each delayed scale."""
    shapes = plan.histories.items()
    return {name: jax.device_put(np.zeros(shape, np.float32)) for name, shape in shapes}


def _is_missing(planned: SitePlan | WriteBack) -> bool:
    """True if a recipe asked for what is not done."""
    return planned.asked and planned.status == "kept"


@takes(TransformOptions)
def transform(fun: Callable[..., Any], options: TransformOptions) -> Callable[..., Any]:
    """Returns ``fun`` with its matrix multiplications quantized, not jitted.

    For ``nnx.jit``, ``eqx.filter_jit``, ``jax.pmap`` and the like, around or inside which it can
    stand. ``fun`` is traced at every call: its arrays have no values yet, as under ``jax.jit``.
    Leaves of the arguments that are not arrays stay what they are, and Flax NNX objects that
    ``fun`` changes in place are changed.

    Args:
      fun: any function of pytrees. Without it, a decorator.
      OPTIONS

    Returns:
      A function with ``fun``'s signature and the keyword ``sr_key`` more.

    Raises:
      ValueError: unknown names (the nearest are listed), or params_argnums out of range.
      TypeError: there is no such option.
    """
    transformation = Transformation(fun, Resolved.of(fun, options), is_array)

    @functools.wraps(fun)
    def transformed(*args: Any, sr_key: Any = None, sr_state: Any = None, **kwargs: Any) -> Any:
        if sr_key is None:
            key = None if _compat.inside_transformation() else IfNeeded(None)
        else:
            key = as_argument(sr_key)
        out = transformation(key if sr_state is None else Stateful(key, sr_state), args, kwargs)
        return out.handed_back(args, kwargs) if isinstance(out, Changed) else out

    transformed.__signature__ = signature_with_key(fun)  # type: ignore[attr-defined]
    transformed.init_state = lambda *a, **k: no_histories(transformation.traced(a, k).plan)  # type: ignore[attr-defined]
    return transformed
