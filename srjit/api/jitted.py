"""``Jitted``: calls a function whose matrix multiplications are quantized, and looks at it."""

from __future__ import annotations

import copy
import dataclasses
import functools
import pickle
import sys
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Self

import jax
from jax.core import Tracer

from srjit import _compat
from srjit.api.bound import BoundMethod
from srjit.api.options import Options, Resolved
from srjit.api.transformation import Onlookers, Transformation, is_traced, no_histories
from srjit.calling import jit as jitting
from srjit.calling.arguments import Changed
from srjit.calling.counter import Counter
from srjit.calling.jit import KeyedJit
from srjit.calling.keys import IfNeeded, Stateful, Uncounted, as_argument, as_words, sent, step_of
from srjit.calling.layout import Layout, Run
from srjit.calling.signature import is_named, name_of, signature_with_key
from srjit.calling.stages import Lowered, Traced
from srjit.diagnostics.watch.stream import Watch, Watched
from srjit.numerics.random_bits import as_key, warn_of_repetition
from srjit.numerics.shards import refuse_around
from srjit.numerics.symbolic import all_known
from srjit.passes import PassWarning
from srjit.passes.report import report_of
from srjit.planning.plan import ProgramPlan
from srjit.planning.site import SitePlan
from srjit.report.report import Report


class Jitted:
    """A jitted function whose matrix multiplications are quantized.

    Attributes:
      name: what messages call it.
      target: what it is rewritten for.
      calls: how many calls have taken their noise from the base key, of whatever object a method
        was; calls that failed do not count. It can be set, to resume.
      watch: what streams the records of its calls, if it is watched; ``watch.wait()`` returns when
        all are written.
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        given: Options,
        onlookers: Onlookers = Onlookers(),  # noqa: B008
    ) -> None:
        functools.update_wrapper(self, fun)  # first: it takes over whatever attributes fun has
        self._fun, self._given = fun, given
        self._options = Resolved.of(fun, given)
        self.name = name_of(fun)
        self.__signature__ = signature_with_key(fun)
        self._settings = self._options.settings
        self.target = self._settings.target
        self._transformation = Transformation(fun, self._options, is_traced, onlookers)
        self.watch = None if given.watch is None else Watch.of(given.watch)
        if self.watch is not None and given.layer != "jaxpr":
            raise ValueError("watch= needs layer='jaxpr': the numbers are the same there")
        if given.key is not None:
            if given.mode == "inference":
                raise TypeError("mode='inference' rounds to nearest everywhere and takes no key")
            jax.eval_shape(lambda: as_key(given.key))  # says at once what is wrong with it
        self._counter = Counter(None if given.key is None else as_argument(given.key))
        self._last: tuple[Any, Any] | None = None
        self._dump = self._options.dump
        self._jit_options = given.jit_options
        self._places = [self._jit_options.get(n) for n in ("in_shardings", "device")]
        jax.jit(fun, **self._jit_options)  # says what is wrong with them, in terms of fun's own
        self._jit = self._keyed_jit(self._transformation, self._jit_options)
        self._watched = None if self.watch is None else self._watched_by(self.watch)

    @property
    def calls(self) -> int:
        """See the class."""
        return self._counter.calls

    @calls.setter
    def calls(self, number: int) -> None:
        self._counter.calls = number

    def copy(self, onlookers: Onlookers = Onlookers(), /, **changed: Any) -> Self:  # noqa: B008
        """Returns the same without key, watch and dump, and with some options changed."""
        return type(self)(self._fun, self._given.alone(**changed), onlookers)

    def __repr__(self) -> str:
        o = self._settings
        return (
            f"<srjit of {self.name}: recipe {o.recipe.name}, target {o.target.name}, mode {o.mode}>"
        )

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else BoundMethod(self, instance)

    # ------------------------------------------------------------- copies, which count on their own

    def __copy__(self) -> Self:
        return self._again(self._fun)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self._again(copy.deepcopy(self._fun, memo))

    def __reduce__(self) -> Any:
        """Pickles it as functions are, by its name; where that is another's, what it is made of."""
        if is_named(self):
            return vars(self)["__qualname__"]
        # cloudpickle and dill keep functions themselves.
        if type(self._fun) is types.FunctionType and not (
            is_named(self._fun) or {"cloudpickle", "dill"} & set(sys.modules)
        ):
            raise pickle.PicklingError(
                f"{self.name} cannot be pickled: it is not to be found by its name, "
                f"{self._fun.__module__}.{self._fun.__qualname__}. Define it at the top of a "
                "module; or pickle with cloudpickle; or keep its program, for some arguments, in "
                "a file: srjit.export(...).save(path)"
            )
        return _made_again, (type(self), self._fun, self._given, self.calls)

    def _again(self, fun: Callable[..., Any]) -> Self:
        return _made_again(type(self), fun, self._given, self.calls)

    # --------------------------------------------------------------------------------- calling

    def __call__(self, *args: Any, sr_key: Any = None, sr_state: Any = None, **kwargs: Any) -> Any:
        """Calls the rewritten function.

        Args:
          *args, **kwargs: fun's own.
          sr_key: a typed PRNG key or an integer step.
          sr_state: for delayed scales, what ``init_state`` or the last call returned.

        Returns:
          What fun returns; with ``sr_state``, a pair of that and the new state.

        Raises:
          TypeError: noise is drawn and ``sr_key`` is missing, or it is not a key; scales are
            delayed and ``sr_state`` is missing.
          ValueError: ``sr_key`` is committed to another device than the arguments, or ``sr_state``
            is not of this program.
        """
        if _compat.inside_transformation():
            refuse_around(self.name)
            if sr_key is not None and _compat.loop_around(sr_key):
                plan = self.planned(args, kwargs)
                if plan.draws_forward or plan.draws_backward:
                    warn_of_repetition(self.name, sr_key)
        key = self._own_key() if sr_key is None else as_argument(sr_key)
        given = key if sr_state is None else Stateful(key, sr_state)
        try:
            jitted = (self._watched or self._jit).of(args, kwargs)
            if self._dump is not None:
                self._dump_module(jitted, given, args, kwargs)
            try:
                out = jitted(given, *args, **kwargs)
            except jax.errors.JaxRuntimeError:
                if not _compat.transfers_are_guarded():
                    raise
                # Asking beforehand would be slower.
                out = jitted(sent(given, (args, kwargs, self._places)), *args, **kwargs)
            if type(out) is Watched:
                out = self._delivered(out, step_of(sr_key, key))
            return out.handed_back(args, kwargs) if type(out) is Changed else out
        except BaseException as error:
            self._counter.give_back(key)
            if isinstance(error, ValueError):
                jitting.explain(error, given, (args, kwargs))
            raise

    def _delivered(self, watched: Watched, step: Any) -> Any:
        """Sends off what was measured, and returns what the function returned."""
        assert self.watch is not None
        if not isinstance(watched.measured, Tracer):
            self.watch.deliver(watched.measured, step)
        elif isinstance(step, Tracer):  # it runs when what is around it runs
            jax.debug.callback(self.watch.take, watched.measured, step)
        else:
            jax.debug.callback(functools.partial(self.watch.take, step=step), watched.measured)
        return watched.out

    def _own_key(self) -> Any:
        if self._settings.mode == "inference":
            return None
        if _compat.inside_transformation():
            return None if self._counter.base is None else Uncounted()
        return IfNeeded(None) if self._counter.base is None else self._counter.next()

    def _dump_module(self, jitted: Any, key: Any, args: Any, kwargs: Any) -> None:
        """Traces and lowers what is about to be called; writes the module if that is a new one."""
        assert self._dump is not None
        before = self._dump.written
        lowered = jitted.lower(key, *args, **kwargs)
        if self._dump.written != before:
            self._dump.write("stablehlo.mlir", lowered.as_text())

    def _watched_by(self, watch: Watch) -> KeyedJit:
        """The jit of the program that returns what was measured too."""
        run = Transformation(self._fun, self._options, is_traced, Onlookers(stream=watch))
        options = dict(self._jit_options)
        if options.get("out_shardings") is not None:
            options["out_shardings"] = Watched(options["out_shardings"], None)
        return self._keyed_jit(run, options)

    def _keyed_jit(self, run: Run, options: dict[str, Any], looks: bool = False) -> KeyedJit:
        """The jit of ``run``, which keeps the shapes of the arguments it was traced with last."""

        def remembering(key: Any, args: Any, kwargs: Any, layout: Layout = ()) -> Any:
            self._last = jax.tree.map(_shape_of, (args, kwargs))
            return run(key, args, kwargs, layout)

        by_layout = bool(self._settings.recipe.pays_on) and not looks
        return KeyedJit(self._fun, remembering, options, by_layout)

    # -------------------------------------------------------------- looking, without running

    def explain(
        self, *args: Any, sr_key: Any = None, sr_state: Any = None, **kwargs: Any
    ) -> Report:
        """Reports what becomes of every site, and why; nothing runs, nothing is warned of.

        Args:
          *args, **kwargs: fun's own; ``jax.ShapeDtypeStruct`` will do in place of arrays.
          sr_key, sr_state: as of a call; not needed.
        """
        del sr_key, sr_state  # the plan does not depend on them
        planned = Report.of(self.planned(args, kwargs))
        known = all(
            all_known(getattr(leaf, "shape", ())) for leaf in jax.tree.leaves((args, kwargs))
        )
        if self._options.layer == "jaxpr" or not known:  # see TracedFunction.has_known_shapes
            return planned
        done = self._report_of_module(args, kwargs)
        notes = dict.fromkeys((*planned.notes, *done.notes))
        # Write-backs are rewritten before lowering: a module does not say what is a parameter's.
        return dataclasses.replace(
            done,
            sites=_as_chosen(planned.sites, done.sites),
            notes=tuple(notes),
            write_backs=planned.write_backs,
            residuals=planned.residuals,
            chosen=planned.chosen,
        )

    def _report_of_module(self, args: Any, kwargs: Any) -> Report:
        modules: list[Any] = []
        onlookers = Onlookers(module=lambda _, module, __: modules.append(module))
        twin = self.copy(onlookers, strict=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PassWarning)
            twin.lower(*args, **kwargs)
        return report_of(modules[-1].operation)

    def planned(self, args: Any, kwargs: Any) -> ProgramPlan:
        """Returns the plan of the program for these arguments."""
        traced = functools.partial(
            self._transformation.traced, layout=self._jit.layout(args, kwargs)
        )
        return self.seen(traced, args, kwargs).plan

    def seen(self, look: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Returns what ``look`` returns of the arguments while the function is traced."""
        seen: list[Any] = []

        def only_look(key: Any, args: Any, kwargs: Any, layout: Layout = ()) -> None:
            del key, layout
            seen.append(look(args, kwargs))

        static = jitting.static_only(self._jit_options)
        jitted = self._keyed_jit(only_look, static, looks=True).of(args, kwargs)
        jitted.trace(None, *args, **kwargs)
        return seen[0]

    def init_state(
        self, *args: Any, sr_key: Any = None, sr_state: Any = None, **kwargs: Any
    ) -> dict[str, jax.Array]:
        """The state of delayed scales before the first step: a pytree, empty if there are none.

        Args:
          *args, **kwargs: fun's own; ``jax.ShapeDtypeStruct`` will do in place of arrays.
          sr_key, sr_state: as of a call; not needed.
        """
        del sr_key, sr_state  # shapes do not depend on them
        return no_histories(self.planned(args, kwargs))

    def rewritten(self, *args: Any, sr_key: Any = None, sr_state: Any = None, **kwargs: Any) -> Any:
        """The rewritten program.

        Returns:
          A ``ClosedJaxpr``, whose first inputs are the key, if it has one; with
          ``layer="stablehlo"``, the text of the rewritten module.
        """
        if self._options.layer == "stablehlo":
            return self.lower(*args, sr_key=sr_key, sr_state=sr_state, **kwargs).as_text()
        return self.trace(*args, sr_key=sr_key, sr_state=sr_state, **kwargs).jaxpr

    def trace(self, *args: Any, sr_key: Any = None, sr_state: Any = None, **kwargs: Any) -> Traced:
        """Traces the rewritten program, as ``jax.jit`` does."""
        key = self._key_to_look_with(sr_key)
        if sr_state is None and self._settings.recipe.has_delayed_scales:
            sr_state = self.init_state(*args, **kwargs)
        if sr_state is not None:
            key = Stateful(key, sr_state)
        return Traced(self._jit.of(args, kwargs).trace(key, *args, **kwargs), key, self._counter)

    def lower(self, *args: Any, sr_key: Any = None, sr_state: Any = None, **kwargs: Any) -> Lowered:
        """Lowers it, as ``jax.jit`` does; the result compiles to what is called as the function is.

        Without ``sr_key`` and without a base key, the compiled program takes a typed PRNG key.
        """
        return self.trace(*args, sr_key=sr_key, sr_state=sr_state, **kwargs).lower()

    def eval_shape(
        self, *args: Any, sr_key: Any = None, sr_state: Any = None, **kwargs: Any
    ) -> Any:
        """Returns shapes and dtypes of the outputs, as ``jax.jit`` does."""
        key = self._key_to_look_with(sr_key)
        if sr_state is not None:
            key = Stateful(key, sr_state)
        out = self._jit.of(args, kwargs).eval_shape(key, *args, **kwargs)
        return out.out if type(out) is Changed else out

    def _key_to_look_with(self, sr_key: Any) -> Any:
        """A key in place of a call's, where nothing runs; it does not count as a call."""
        if sr_key is not None:
            return as_words(sr_key)
        if self._settings.mode == "inference":
            return None
        if self._counter.base is not None:
            return self._counter.at(self.calls)
        return IfNeeded(jax.eval_shape(lambda: jax.random.key(0)))

    def keyed(self, key: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """The ``jax.jit`` that runs for these arguments, and what it takes as its first one.

        Args:
          key: what to give it as the key, a type of ``srjit.calling.keys``, if it takes one.
          args, kwargs: fun's own.
        """
        given = None if self._settings.mode == "inference" else key
        state = self.init_state(*args, **kwargs) if self._settings.recipe.has_delayed_scales else {}
        return self._jit.of(args, kwargs), Stateful(given, state) if state else given

    def made_of(self) -> tuple[Callable[..., Any], Options]:
        """Returns the function and the options, as they were given."""
        return self._fun, self._given

    def clear_cache(self) -> None:
        """Clears the compiled programs, as ``jax.jit`` does."""
        for jitted in (self._jit, self._watched):
            if jitted is not None:
                jitted.clear_cache()


def _made_again(cls: type[Any], fun: Callable[..., Any], given: Options, calls: int) -> Any:
    made = cls(fun, given)
    made.calls = calls
    return made


def _as_chosen(planned: Sequence[SitePlan], done: Sequence[SitePlan]) -> tuple[SitePlan, ...]:
    """The rows of a module's report; a site that does not pay keeps the reason of the plan."""
    if len(planned) != len(done):  # a loop that JAX has unrolled
        return tuple(done)
    return tuple(
        dataclasses.replace(d, rule=p.rule)
        if p.pays
        else dataclasses.replace(p, backward=d.backward)
        for p, d in zip(planned, done, strict=True)
    )


def _shape_of(leaf: Any) -> Any:
    """An array's shape and dtype; anything else as it is."""
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
