"""A function with its matrix multiplications quantized: trace, plan, rewrite, evaluate."""

from __future__ import annotations

import dataclasses
import functools
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from srjit import _compat, recipes, targets
from srjit.calling.arguments import Arguments, Changed, Objects
from srjit.calling.keys import (
    IfNeeded,
    MissingKeyError,
    Stateful,
    Undifferentiated,
    from_host,
    is_host_value,
    key_words,
)
from srjit.calling.signature import name_of, parameters_of, signature_with_key
from srjit.diagnostics.dump import Dump
from srjit.diagnostics.watch.stream import Watch, Watched
from srjit.jaxprs.frame import State
from srjit.jaxprs.observation import Observer, Shown
from srjit.jaxprs.rewrite import evaluate, remembered
from srjit.modules import layer as hlo_call
from srjit.numerics.formats import unknown_name
from srjit.numerics.random_bits import Key, Rng
from srjit.planning.plan import ProgramPlan, Settings
from srjit.planning.planner import make_plan, recipe_of
from srjit.planning.site import SitePlan, WriteBack
from srjit.program.values import DATA, PARAMETER
from srjit.recipes import Recipe
from srjit.report.report import Report
from srjit.targets import Target

Mode = Literal["train", "inference"]
Layer = Literal["jaxpr", "stablehlo"]


class UnsupportedSiteError(ValueError):
    """``strict=True``, and a site that the recipe asked for could not be quantized."""


@dataclasses.dataclass(frozen=True)
class Options:
    """What a user chose; see ``srjit.srjit``."""

    recipe: Recipe
    target: Target
    mode: Mode
    params_argnums: tuple[int, ...]
    rng: Rng
    strict: bool
    dump: Dump | None
    layer: Layer = "jaxpr"
    has_targets_recipe: bool = False

    @classmethod
    def of(
        cls,
        fun: Callable[..., Any],
        recipe: str | os.PathLike[str] | Recipe,
        target: str | Target,
        mode: Mode,
        params_argnums: int | Sequence[int],
        rng: Rng,
        strict: bool,
        dump_to: str | os.PathLike[str] | None,
        layer: Layer = "jaxpr",
    ) -> Options:
        """Checks and resolves what was given for ``fun``."""
        _check_function(fun)
        chosen = targets.get(target)
        for kind, value, known in (
            ("mode", mode, ("train", "inference")),
            ("rng", rng, ("hash", "threefry")),
            ("layer", layer, ("jaxpr", "stablehlo")),
        ):
            if value not in known:
                raise unknown_name(kind, value, known)
        folder = dump_to or os.environ.get("SRJIT_DUMP_TO")
        return cls(
            recipe=recipe_of(chosen) if recipe == "auto" else recipes.get(recipe),
            target=chosen,
            mode=mode,
            params_argnums=_positions(fun, params_argnums),
            rng=rng,
            strict=strict,
            dump=Dump(folder, name_of(fun)) if folder else None,
            layer=layer,
            has_targets_recipe=recipe == "auto",
        )

    def on(self, target: Target) -> Options:
        """The same for another target, with its recipe if this one has its target's."""
        recipe = recipe_of(target) if self.has_targets_recipe else self.recipe
        return dataclasses.replace(self, target=target, recipe=recipe)


def _check_function(fun: Callable[..., Any]) -> None:
    if not callable(fun):
        raise TypeError(
            f"srjit takes a function first, got {fun!r}; options go by name: "
            "srjit(fun, recipe='int8')"
        )
    if any(p.name == "sr_key" and p.kind is not p.VAR_KEYWORD for p in parameters_of(fun) or ()):
        raise ValueError(
            f"{name_of(fun)} has a parameter called sr_key, which is the keyword that srjit takes "
            "for itself and the function never sees: rename the parameter, or, if the function is "
            "an srjit one already, leave it at that"
        )


def _positions(fun: Callable[..., Any], numbers: int | Sequence[int]) -> tuple[int, ...]:
    """``params_argnums`` as a tuple; not negative where the number of parameters is known."""
    given = tuple(numbers) if isinstance(numbers, Sequence) else (numbers,)
    if not all(type(n) is int for n in given):
        raise TypeError(f"params_argnums is a position or a sequence of them, got {numbers!r}")
    parameters = parameters_of(fun)
    if parameters is None or any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return given
    count = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    if not count and given == (0,):  # the default, and nothing to point at
        return ()
    for number in given:
        if not -count <= number < count:
            raise ValueError(
                _out_of_range(fun, number, f"takes {count} positional argument", count)
            )
    return tuple(n % count for n in given)


def _out_of_range(fun: Callable[..., Any], number: int, had: str, count: int) -> str:
    plural = "s" * (count != 1)
    return f"params_argnums={number} is out of range: {name_of(fun)} {had}{plural}"


def is_array(x: Any) -> bool:
    """Whether a leaf is an array, or stands for one."""
    return isinstance(x, (jax.Array, np.ndarray))


def is_traced(x: Any) -> bool:
    """Whether a leaf is what a jitted function is traced with; static arguments are not."""
    return isinstance(x, Tracer) or (_compat.jit_is_disabled() and is_array(x))


@dataclasses.dataclass(frozen=True)
class Program:
    """A traced function, and what is to become of it.

    Attributes:
      original: as traced.
      closed: without its dead code; the plan is of this.
      plan: of every site.
      shown: what its evaluation shows of itself.
      leaves: the arrays among the arguments.
      labels: for each of them, whether it is a parameter or data.
      names: of them: ``params['w']``.
      unflatten: makes (what the function returned, changed state or None) of the outputs.
    """

    original: Any
    closed: Any
    plan: ProgramPlan
    shown: Shown
    leaves: list[Any]
    labels: list[str]
    names: list[str]
    unflatten: Callable[[Sequence[Any]], Any]

    def evaluate(
        self, words: Key | None, leaves: Sequence[Any], state: State
    ) -> tuple[list[Any], State, list[jax.Array]]:
        """The outputs of the rewritten program, its delayed scales' histories, what is watched."""
        outs, seen = evaluate(self.closed, self.plan, words, leaves, state, self.shown)
        watched = [seen.pop(name) for name in self.shown.measured.values()]
        return outs, {n: remembered(state[n], amax) for n, amax in seen.items()}, watched


class Transformation:
    """A function and how it is to be rewritten; called with a key and the function's arguments."""

    def __init__(
        self, fun: Callable[..., Any], options: Options, is_dynamic: Callable[[Any], bool]
    ) -> None:
        self.fun, self.options, self.is_dynamic = fun, options, is_dynamic
        self.name = name_of(fun)
        dump = options.dump
        self._seen = None if dump is None else hlo_call.dumping(dump.write)
        self._warned = False
        self._observer: Observer | None = None
        self._stream: Watch | None = None

    def watch(self, seen: Callable[[str, Any], None]) -> None:
        """From now on, only looks: ``seen`` gets the module after every pass, nobody is warned."""
        self._seen, self._warned = seen, True

    def observe(self, observer: Observer) -> None:
        """From now on, ``observer`` sees quantizations, and nobody is warned."""
        self._observer, self._warned = observer, True

    def stream(self, watch: Watch) -> None:
        """From now on, what quantizations are like is streamed."""
        self._stream = watch

    def __call__(self, key: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """What the rewritten function returns; ``Changed`` if it changed objects in place.

        In ``Watched``, if it is streamed.

        Args:
          key: a type of ``srjit.calling.keys``, or None inside another transformation.
          args, kwargs: of the function.
        """
        program = self.traced(args, kwargs)
        given = key if isinstance(key, Stateful) else Stateful(key, None)
        words = self._key_words(given.key, program.plan)
        histories = self._histories(given.state, program.plan)
        self.complain(Report.of(program.plan))
        if self.options.dump:
            self._dump(self.options.dump, program, words, histories)
        watched: list[jax.Array] = []
        if self.options.layer == "stablehlo":
            outs, remembered = self._call_module(program, words, histories)
        else:
            outs, remembered, watched = program.evaluate(words, program.leaves, histories)
        out, changes = program.unflatten(outs)
        if given.state is not None:
            out = out, remembered
        out = out if changes is None else Changed(out, changes)
        if self._stream is None:
            return out
        return Watched(out, self._stream.packed(list(program.shown.measured), watched))

    def _call_module(
        self, program: Program, words: Key | None, histories: State
    ) -> tuple[list[Any], State]:
        """The outputs of the program as passes rewrite it, when JAX lowers it."""
        options = self.options
        recipe, closed, first = options.recipe, program.closed, ()
        if words is not None and program.plan.write_backs.writes:
            closed, first = self._written_back(program, words), words
        recipe = recipe.without_write_backs()  # that is done
        labels = (*[DATA] * len(first), *program.labels)
        rewriting = hlo_call.Rewriting(
            name=self.name,
            recipe=recipe.to_toml(),
            target=options.target.name,
            mode=options.mode,
            rng=options.rng,
            parameters=tuple(label == PARAMETER for label in labels),
            has_key=words is not None,
            states=tuple(histories),
            seen=self._seen,
        )
        return hlo_call.call(closed, rewriting, words, histories, [*first, *program.leaves])

    @staticmethod
    def _written_back(program: Program, words: Key) -> Any:
        """The program, which takes the key words first, with nothing but its write-backs rounded.

        They are no products: passes find the same sites in it, with the same numbers.
        """
        plan = program.plan.without_sites()

        def fun(words: Key, leaves: Sequence[Any]) -> list[Any]:
            return evaluate(program.closed, plan, words, leaves, {})[0]

        return jax.make_jaxpr(fun)(words, program.leaves)

    def init_state(self, args: Sequence[Any], kwargs: dict[str, Any]) -> State:
        """Histories that remember nothing, one for each delayed scale."""
        shapes = self.traced(args, kwargs).plan.histories
        return {name: jnp.zeros(shape, jnp.float32) for name, shape in shapes.items()}

    def _histories(self, state: Any, plan: ProgramPlan) -> State:
        if state is None and plan.histories:
            raise TypeError(
                f"recipe {self.options.recipe.name!r} has delayed scales, which are state: call "
                f"{self.name} with sr_state=, at first {self.name}.init_state(...) of the same "
                "arguments; the call then returns (result, new_state)"
            )
        shapes = {} if state is None else {name: jnp.shape(x) for name, x in state.items()}
        if shapes != plan.histories:
            raise ValueError(
                f"sr_state does not fit {self.name} with recipe {self.options.recipe.name!r}: it "
                f"has {shapes or 'nothing'}, the program needs {plan.histories or 'nothing'}; make "
                "it with init_state(...) of the same arguments"
            )
        return state or {}

    def report(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Report:
        """What would become of every site."""
        return Report.of(self.traced(args, kwargs).plan)

    # --------------------------------------------------------------------------------- tracing

    def traced(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Program:
        """The function, traced for these arguments, and planned."""
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
            output[:] = (
                tree,
                [None if t else r for r, t in zip(results, traced, strict=True)],
                traced,
            )
            return [r for r, t in zip(results, traced, strict=True) if t]

        original = jax.make_jaxpr(flat)(*dynamic)
        tree, others, traced = output

        def unflatten(results: Sequence[Any]) -> Any:
            values = iter(results)
            filled = [next(values) if t else o for o, t in zip(others, traced, strict=True)]
            return jax.tree.unflatten(tree, filled)

        labels = self._labels([given.owners[i] for i in numbers], len(args))
        settings = Settings(
            self.options.recipe, self.options.target, self.options.mode, self.options.rng
        )
        closed = _compat.dce(original)
        names = self._names(given, numbers)
        plan = make_plan(closed, labels, settings, names)
        notes = (*plan.notes, *self._notes(labels, dynamic), *self._layer_notes(plan))
        plan = dataclasses.replace(plan, notes=notes)
        shown = Shown.of(plan, self._observer, self._stream.kinds if self._stream else ())
        return Program(original, closed, plan, shown, dynamic, labels, names, unflatten)

    def _labels(self, owners: Sequence[int | str], count: int) -> list[str]:
        """Parameter or data, for the leaves of the arguments ``owners``."""
        numbers, parameters = self.options.params_argnums, parameters_of(self.fun) or []
        if any(p.kind is p.VAR_POSITIONAL for p in parameters):
            for n in numbers:
                if not -count <= n < count and n:
                    had = f"was called with {count} positional argument"
                    raise ValueError(_out_of_range(self.fun, n, had, count))
        chosen: set[int | str] = {n % count for n in numbers if -count <= n < count}
        chosen |= {parameters[n].name for n in numbers if 0 <= n < len(parameters)}
        return [PARAMETER if owner in chosen else DATA for owner in owners]

    def _names(self, given: Arguments, numbers: Sequence[int]) -> list[str]:
        """What leaves of the arguments are called: ``params['w']``."""
        parameters = [p.name for p in parameters_of(self.fun) or ()]

        def owner(of: int | str) -> str:
            if isinstance(of, str):
                return of
            return parameters[of] if of < len(parameters) else f"args[{of}]"

        return [owner(given.owners[i]) + given.paths[i] for i in numbers]

    def _notes(self, labels: Sequence[str], leaves: Sequence[Any]) -> list[str]:
        parameters = [x for x, la in zip(leaves, labels, strict=True) if la == PARAMETER]
        if any(_compat.is_float(x.dtype) for x in parameters):
            return []
        numbers = ", ".join(map(str, self.options.params_argnums)) or "none"
        return [
            f"params_argnums ({numbers}): no floating-point arrays there; weights are looked for "
            "among the arrays that the function captures"
        ]

    def _layer_notes(self, plan: ProgramPlan) -> list[str]:
        if self.options.layer != "stablehlo" or not plan.provenance.unrolled:
            return []
        places = ", ".join(plan.provenance.unrolled)
        return [
            f"scan(unroll=...) at {places}: JAX lowers it to several copies of its body, which "
            "have noise of their own: not the bits of layer='jaxpr'"
        ]

    # ------------------------------------------------------------------------------------ keys

    def _key_words(self, key: Any, plan: ProgramPlan) -> Key | None:
        if self.options.mode == "inference":
            if key is None or isinstance(key, Undifferentiated):
                return None
            raise TypeError("mode='inference' rounds to nearest everywhere and takes no sr_key")
        alone = isinstance(key, (Undifferentiated, IfNeeded)) or self.options.layer == "stablehlo"
        draws = plan.draws_forward or (plan.draws_backward and not alone)
        if isinstance(key, IfNeeded):
            key = key.key
        if key is None or isinstance(key, Undifferentiated):
            if draws:
                raise MissingKeyError.of(self.name)
            return None
        if not draws:
            jax.eval_shape(key_words, key)  # a wrong key is wrong, needed or not
            return None
        return key_words(key)

    # --------------------------------------------------------------------------------- telling

    def complain(self, report: Report) -> None:
        """Warns once of what a recipe asked for and is not done; raises if that is strict."""
        asked = (
            (report.with_gradients, "matrix multiplications", "stay in high precision"),
            (report.write_backs, "write-backs", "stay as the program has them"),
        )
        message = "\n".join(
            self._missing(given, f"{what} that recipe {report.recipe!r} asks for {stay}")
            for given, what, stay in asked
            if any(_is_missing(s) for s in given)
        )
        if not message or (self._warned and not self.options.strict):
            return
        if self.options.strict:
            raise UnsupportedSiteError(message)
        self._warned = True
        warnings.warn(message, stacklevel=_compat.user_stacklevel())

    def _missing(self, given: Sequence[SitePlan | WriteBack], what: str) -> str:
        missing = [s for s in given if _is_missing(s)]
        lines = [f"  {s.described()}: {s.reason}" for s in missing[:10]]
        if len(missing) > 10:
            lines.append(f"  and {len(missing) - 10} more: see explain()")
        return f"{self.name}: {len(missing)} of {len(given)} {what}:\n" + "\n".join(lines)

    def _dump(self, dump: Dump, program: Program, words: Key | None, histories: State) -> None:
        dump.write("original.jaxpr", str(program.original))
        dump.write("dead-code-eliminated.jaxpr", str(program.closed))
        report = Report.of(program.plan)
        dump.write("plan.txt", str(report))
        dump.write("plan.json", report.to_json())
        if self.options.layer == "stablehlo":
            return  # modules, when there are any
        rewritten = jax.make_jaxpr(program.evaluate)(words, program.leaves, histories)
        dump.write("rewritten.jaxpr", str(rewritten))


def _is_missing(planned: SitePlan | WriteBack) -> bool:
    """Whether a recipe asked for what is not done."""
    return planned.asked and planned.status == "kept"


def transform(
    fun: Callable[..., Any],
    *,
    recipe: str | os.PathLike[str] | Recipe = "auto",
    target: str | Target = "auto",
    mode: Mode = "train",
    params_argnums: int | Sequence[int] = 0,
    rng: Rng = "hash",
    strict: bool = False,
    dump_to: str | os.PathLike[str] | None = None,
) -> Callable[..., Any]:
    """``fun`` with its matrix multiplications quantized, not jitted.

    For ``nnx.jit``, ``eqx.filter_jit``, ``jax.pmap`` and the like, around or inside which it can
    stand. ``fun`` is traced at every call: its arrays have no values yet, as under ``jax.jit``.
    Leaves of the arguments that are not arrays stay what they are, and Flax NNX objects that
    ``fun`` changes in place are changed.

    Args:
      fun: any function of pytrees.
      recipe, target, mode, params_argnums, rng, strict, dump_to: as of ``srjit``.

    Returns:
      A function with ``fun``'s signature and the keyword ``sr_key`` more.

    Raises:
      ValueError: unknown names (the nearest are listed), or params_argnums out of range.
    """
    options = Options.of(fun, recipe, target, mode, params_argnums, rng, strict, dump_to)
    transformation = Transformation(fun, options, is_array)

    @functools.wraps(fun)
    def transformed(*args: Any, sr_key: Any = None, sr_state: Any = None, **kwargs: Any) -> Any:
        if sr_key is None:
            key = None if _compat.inside_transformation() else Undifferentiated()
        else:
            key = from_host(sr_key) if is_host_value(sr_key) else sr_key
        out = transformation(key if sr_state is None else Stateful(key, sr_state), args, kwargs)
        if isinstance(out, Changed):
            Objects.among(args, kwargs).update(out.state)
            return out.out
        return out

    transformed.__signature__ = signature_with_key(fun)  # type: ignore[attr-defined]
    transformed.init_state = lambda *a, **k: transformation.init_state(a, k)  # type: ignore[attr-defined]
    return transformed
