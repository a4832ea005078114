"""``srjit``: what ``jax.jit`` is, with the matrix multiplications of the function quantized."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import threading
import types
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from srjit import _compat, aot, recipes, targets
from srjit.api.transformation import (
    Layer,
    Mode,
    Options,
    Transformation,
    is_traced,
)
from srjit.calling import jit as jitting
from srjit.calling.arguments import Changed, Objects
from srjit.calling.jit import KeyedJit
from srjit.calling.keys import (
    Counted,
    IfNeeded,
    Stateful,
    Undifferentiated,
    as_words,
    from_host,
    is_host_value,
    key_words,
)
from srjit.calling.signature import name_of, signature_with_key
from srjit.calling.stages import Lowered, Traced
from srjit.diagnostics.replay import Replayed, replayed
from srjit.diagnostics.verify.capture import Capture
from srjit.diagnostics.verify.certificate import Certificate
from srjit.diagnostics.verify.certify import certify
from srjit.diagnostics.watch.diagnosis import Diagnosis, diagnosed
from srjit.diagnostics.watch.stream import Record, Watch, Watched
from srjit.numerics.formats import unknown_name
from srjit.numerics.random_bits import Rng, as_key
from srjit.passes import PassWarning
from srjit.passes.report import report_of
from srjit.planning.roles import KEEP_SCOPE, role_scope
from srjit.program.site_names import naming_sites
from srjit.recipes import Recipe, Role
from srjit.report.report import Report
from srjit.targets import Target


@overload
def srjit(fun: None = None, **options: Any) -> Callable[[Callable[..., Any]], SrjitFunction]: ...
@overload
def srjit(fun: Callable[..., Any], **options: Any) -> SrjitFunction: ...
def srjit(
    fun: Callable[..., Any] | None = None,
    *,
    recipe: str | os.PathLike[str] | Recipe = "auto",
    target: str | Target = "auto",
    mode: Mode = "train",
    layer: Layer = "jaxpr",
    params_argnums: int | Sequence[int] = 0,
    rng: Rng = "hash",
    strict: bool = False,
    key: Any = None,
    watch: Any = None,
    dump_to: str | os.PathLike[str] | None = None,
    **jit_options: Any,
) -> Any:
    """``jax.jit`` with the matrix multiplications of ``fun`` quantized.

    Args:
      fun: any function of pytrees: a training step, a loss, a layer. Without it, a decorator.
      recipe: a name (``srjit.recipes.names()``), a ``.toml`` file or a Recipe; ``auto`` is the
        target's.
      target: a name (``srjit.targets.names()``) or a Target; ``auto`` is the attached device's.
      mode: ``train``, or ``inference``: nearest everywhere, no key.
      layer: what is rewritten: the traced function (``jaxpr``), or what JAX lowers it to
        (``stablehlo``), by the passes of ``srjit.passes``. Numbers are the same; what is rewritten
        after lowering can be called inside another ``jax.jit``, but not differentiated or batched.
      params_argnums: positional arguments whose arrays are parameters.
      rng: ``hash`` or ``threefry``.
      strict: whether a site that the recipe asks for and that cannot be had is an error.
      key: a base key, for calls without ``sr_key``: the wrapper counts its calls and folds the
        count in.
      watch: a file that gets a JSON object a line for every gradient that is quantized, in every
        step: its norm and the noise's, what nearest rounding sends to zero, what is saturated,
        amax (``srjit.diagnostics.watch.stream.Record``). Or a function of such a record, such as
        ``srjit.TensorBoard(folder)``. Results stay as they are; ``srjit watch FILE`` draws it.
      dump_to: a folder for the program after every stage; by default what ``SRJIT_DUMP_TO`` says
        when ``fun`` is decorated. A folder that cannot be written to is an OSError at the call
        that would write.
      **jit_options: as of ``jax.jit``, in terms of fun's own arguments.

    Returns:
      A SrjitFunction, called as ``jax.jit(fun)`` is, with the keyword ``sr_key`` more.

    Raises:
      ValueError: unknown names (the nearest are listed), params_argnums out of range, or ``fun``
        has a parameter called ``sr_key``.
      TypeError: ``key`` is not a key, or an option is not one of ``jax.jit``'s.

    Example:
      >>> @srjit(recipe="int8")
      ... def train_step(params, batch):
      ...     loss, grads = jax.value_and_grad(loss_fn)(params, batch)
      ...     return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads), loss
      >>> params, loss = train_step(params, batch, sr_key=jax.random.key(0))
    """
    for name in jit_options:
        if name not in jitting.OPTIONS:
            known = {*jitting.OPTIONS, *inspect.signature(Options.of).parameters, "key", "watch"}
            raise TypeError(str(unknown_name("option", name, known - {"fun"})))

    def decorate(fun: Callable[..., Any]) -> SrjitFunction:
        options = Options.of(fun, recipe, target, mode, params_argnums, rng, strict, dump_to, layer)
        return SrjitFunction(fun, options, key, jit_options, watch)

    return decorate if fun is None else decorate(fun)


class SrjitFunction:
    """A jitted function whose matrix multiplications are quantized; made by ``srjit``.

    Attributes:
      name: what messages call it.
      target: what it is rewritten for.
      calls: how many calls have taken their noise from the base key; can be set, to resume.
      watch: what streams the records of its calls, if it is watched; ``watch.wait()`` returns when
        all are written.
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        options: Options,
        key: Any,
        jit_options: dict[str, Any],
        watch: Any = None,
    ) -> None:
        functools.update_wrapper(self, fun)
        self.name = name_of(fun)
        self.__signature__ = signature_with_key(fun)
        self._fun, self._options = fun, options
        self.target = options.target
        self._transformation = Transformation(fun, options, is_traced)
        self.watch = None if watch is None else Watch.of(watch)
        if self.watch is not None and options.layer != "jaxpr":
            raise ValueError("watch= is for layer='jaxpr', whose numbers are the same")
        self._base = key
        if key is not None:
            if options.mode == "inference":
                raise TypeError("mode='inference' rounds to nearest everywhere and takes no key")
            as_key(key)  # says at once what is wrong with it
            self._base = from_host(key) if is_host_value(key) else key
        self.calls = 0
        self._last: tuple[Any, Any] | None = None
        self._counting = threading.Lock()
        self._dump = options.dump
        jax.jit(fun, **jit_options)  # says what is wrong with them, in terms of fun's arguments
        self._jit_options = dict(jit_options)
        self._jit = KeyedJit(fun, self._remembering(self._transformation), self._jit_options)
        self._watched = None if self.watch is None else self._watched_by(self.watch)

    def __repr__(self) -> str:
        o = self._options
        return (
            f"<srjit of {self._transformation.name}: recipe {o.recipe.name}, "
            f"target {o.target.name}, mode {o.mode}>"
        )

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

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
        if sr_key is None:
            sr_key = self._own_key()
        elif is_host_value(sr_key):
            sr_key = from_host(sr_key)
        if sr_state is not None:
            sr_key = Stateful(sr_key, sr_state)
        jitted = (self._watched or self._jit).of(args)
        if self._dump is not None:
            self._dump_module(jitted, sr_key, args, kwargs)
        try:
            out = jitted(sr_key, *args, **kwargs)
        except ValueError as error:
            jitting.explain(error, sr_key, (args, kwargs))
            raise
        if type(out) is Watched:
            out = self._delivered(out)
        if type(out) is Changed:
            Objects.among(args, kwargs).update(out.state)
            return out.out
        return out

    def _delivered(self, watched: Watched) -> Any:
        """What the function returned; what was measured is on its way."""
        assert self.watch is not None
        if isinstance(watched.measured, Tracer):  # it runs when what is around it runs
            jax.debug.callback(self.watch.take, watched.measured)
        else:
            self.watch.deliver(watched.measured)
        return watched.out

    def _own_key(self) -> Any:
        """What a call without ``sr_key`` takes."""
        if self._options.mode == "inference" or _compat.inside_transformation():
            return None
        return Undifferentiated() if self._base is None else self._next_key()

    def _next_key(self) -> Counted:
        with self._counting:
            number = self.calls
            self.calls += 1
        return self._counted(number)

    def _counted(self, number: int) -> Counted:
        # A jitted function takes a Python integer fastest; from 2**31 on it overflows there.
        return Counted(self._base, number if number < 2**31 else np.uint32(number))

    def _dump_module(self, jitted: Any, key: Any, args: Any, kwargs: Any) -> None:
        """Traces and lowers what is about to be called; writes the module if that is a new one."""
        assert self._dump is not None
        before = self._dump.written
        lowered = jitted.lower(key, *args, **kwargs)
        if self._dump.written != before:
            self._dump.write("stablehlo.mlir", lowered.as_text())

    def _watched_by(self, watch: Watch) -> KeyedJit:
        """The jit of the program that returns what was measured too."""
        run = Transformation(self._fun, self._options, is_traced)
        run.stream(watch)
        options = dict(self._jit_options)
        if options.get("out_shardings") is not None:
            options["out_shardings"] = Watched(options["out_shardings"], None)
        return KeyedJit(self._fun, self._remembering(run), options)

    def _remembering(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """As ``run``; of what was traced last, shapes are kept."""

        def remembering(key: Any, args: Any, kwargs: Any) -> Any:
            self._last = jax.tree.map(_shape_of, (args, kwargs))
            return run(key, args, kwargs)

        return remembering

    # -------------------------------------------------------------- looking, without running

    def explain(
        self, *args: Any, sr_key: Any = None, sr_state: Any = None, **kwargs: Any
    ) -> Report:
        """What becomes of every site, and why; nothing runs, nothing is warned of.

        Args:
          *args, **kwargs: fun's own; ``jax.ShapeDtypeStruct`` will do in place of arrays.
          sr_key, sr_state: as of a call; not needed.
        """
        del sr_key, sr_state  # the plan does not depend on them
        planned: Report = self._seen(self._transformation.report, args, kwargs)
        if self._options.layer == "jaxpr":
            return planned
        done = self._report_of_module(args, kwargs)
        notes = dict.fromkeys((*planned.notes, *done.notes))
        # Write-backs are rewritten before lowering: a module does not say what is a parameter's.
        return dataclasses.replace(done, notes=tuple(notes), write_backs=planned.write_backs)

    def _report_of_module(self, args: Any, kwargs: Any) -> Report:
        """What the passes say that they have done."""
        modules: list[Any] = []
        options = dataclasses.replace(self._options, strict=False, dump=None)
        copy = SrjitFunction(self._fun, options, None, self._jit_options)
        copy._transformation.watch(lambda _, module: modules.append(module))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PassWarning)
            copy.lower(*args, **kwargs)
        return report_of(modules[-1].operation)

    def _seen(self, look: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """What ``look`` returns of the arguments as they are while the function is traced."""
        seen: list[Any] = []

        def only_look(key: Any, args: Any, kwargs: Any) -> None:
            del key
            seen.append(look(args, kwargs))

        static = jitting.static_only(self._jit_options)
        look_at = KeyedJit(self._fun, self._remembering(only_look), static)
        look_at.of(args).trace(None, *args, **kwargs)
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
        shapes = self._seen(self._transformation.init_state, args, kwargs)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

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
        """As of ``jax.jit``: the rewritten program, traced."""
        key = self._key_to_look_with(sr_key)
        if sr_state is None and self._options.recipe.has_delayed_scales:
            sr_state = self.init_state(*args, **kwargs)
        if sr_state is not None:
            key = Stateful(key, sr_state)
        return Traced(self._jit.of(args).trace(key, *args, **kwargs), key, self._next_key)

    def lower(self, *args: Any, sr_key: Any = None, sr_state: Any = None, **kwargs: Any) -> Lowered:
        """As of ``jax.jit``; the result compiles to something that is called as the function is.

        Without ``sr_key`` and without a base key, the compiled program takes a typed PRNG key.
        """
        return self.trace(*args, sr_key=sr_key, sr_state=sr_state, **kwargs).lower()

    def eval_shape(
        self, *args: Any, sr_key: Any = None, sr_state: Any = None, **kwargs: Any
    ) -> Any:
        """As of ``jax.jit``: shapes and dtypes of the outputs."""
        key = self._key_to_look_with(sr_key)
        if sr_state is not None:
            key = Stateful(key, sr_state)
        out = self._jit.of(args).eval_shape(key, *args, **kwargs)
        return out.out if type(out) is Changed else out

    def aot(
        self,
        *args: Any,
        target: str | Target | None = None,
        mesh: Any = None,
        sr_key: Any = None,
        sr_state: Any = None,
        **kwargs: Any,
    ) -> aot.Report:
        """Compiles for hardware that is not attached, and reports what its compiler made of it.

        Args:
          *args, **kwargs: fun's own; ``jax.ShapeDtypeStruct`` will do in place of arrays.
          target: a name or a Target; the decorator's own if None. ``recipe="auto"`` is its.
          mesh: for several devices: sizes of the mesh's axes by name, or a Mesh or AbstractMesh;
            by default, that of the arguments' shardings, or of ``in_shardings``. Shardings,
            PartitionSpecs too, are about axes of the same names.
          sr_key, sr_state: as of a call; not needed.

        Returns:
          A report of every site, and of the program beside the one that was not rewritten.

        Raises:
          MissingCompilerError: the target's compiler is not installed.
          ValueError: no such target, none that srjit can compile for, or no mesh of such a size.
        """
        chosen = self._options.target if target is None else targets.get(target)
        options, given = self._options.on(chosen), self._jit.in_shardings(len(args))
        own = [getattr(x, "sharding", None) for x in jax.tree.leaves((args, kwargs))]
        place = aot.Placement.of(chosen, mesh, given, own)
        moved = place.options(self._jit_options)
        args = place.arguments(args, given)
        kwargs, sr_key, sr_state = place.arguments((kwargs, sr_key, sr_state))
        copy = SrjitFunction(self._fun, dataclasses.replace(options, dump=None), None, moved)
        with place.entered():
            planned = copy.explain(*args, **kwargs)
            before = jax.jit(self._fun, **moved).lower(*args, **kwargs)
            with naming_sites():
                after = copy.lower(*args, sr_key=sr_key, sr_state=sr_state, **kwargs)
        return aot.reported(before, after, planned, place)

    def verify(
        self,
        *args: Any,
        draws: int = 256,
        sr_key: Any = None,
        sr_state: Any = None,
        **kwargs: Any,
    ) -> Certificate:
        """Runs the program ``draws`` times and tests its stochastic rounding on these arguments.

        What each stochastic quantizer and write-back gets in the first step is rounded again with
        the keys of all steps. Signed sums of what that is off by, by sign, binade and fraction of a
        step, tell a bias; products tell noise that neighbours, sites or steps share. Limits are
        Bernstein's for the number of draws (see ``srjit.diagnostics.verify.statistics``): a
        correct program fails less than once in 10^6 certificates. Of tensors of more than 65536
        elements a seeded choice of that many is summed, and as many pairs of neighbours; noise is
        compared between steps and between sites on the first 4096 elements; of what stands in loops
        or shards, 4 executions are looked at. A program with stochastic write-backs runs twice as
        often: the averages of its outputs are those without.

        What is verified is the formula of the platform that this runs on, with ``layer="jaxpr"``,
        whose noise is that of the other layer. Quantizers that only differentiating the function
        would add are not in its program: verify the function that differentiates it.

        Args:
          *args, **kwargs: fun's own, with values; nothing is donated, no object changed.
          draws: how many steps, 4 at least.
          sr_key: a typed PRNG key or an integer: the base key of the steps, which are numbered;
            the decorator's ``key`` if None, or 0.
          sr_state: for delayed scales, the state to start each step with; that of ``init_state`` if
            None.

        Returns:
          A certificate: ``.passed``, ``.verdict``, ``.operands``, ``.outputs``; ``str()`` is a
          table for a terminal; ``.to_json()``, ``.to_html()``.

        Raises:
          ValueError: fewer than 4 draws.
        """
        seen = Capture()
        program = self._observed(lambda t: t.observe(seen.observe), args, kwargs, sr_key, sr_state)
        report = self._seen(self._transformation.report, args, kwargs)
        return certify(program, self._options.recipe, seen, report, draws)

    def diagnose(
        self, *args: Any, steps: int = 1, sr_key: Any = None, sr_state: Any = None, **kwargs: Any
    ) -> Diagnosis:
        """Runs the program on these arguments and says what its gradients and their rounding do.

        Watches what the recipe quantizes: of a function that is differentiated outside, no
        gradients are in its program. ``srjit(..., watch=...)`` does the same in a run.

        Args:
          *args, **kwargs: fun's own, with values; nothing is donated, no object changed.
          steps: how often to run, each time with another key.
          sr_key, sr_state: as of ``verify``.

        Returns:
          A diagnosis: ``.findings``, ``.advice``; ``str()`` is a table and advice for a terminal;
          ``.to_json()``, ``.to_html()``.

        Raises:
          ValueError: steps is not positive.
        """
        if steps < 1:
            raise ValueError(f"steps={steps}: it is a number of steps, 1 at least")
        records: list[Record] = []
        watch = Watch(records.append)
        program = self._observed(lambda t: t.stream(watch), args, kwargs, sr_key, sr_state)
        run = program(self._options.recipe)
        for step in range(steps):
            watch.take(run(step).measured)
        notes: list[str] = []
        if not records:
            notes.append(
                "no gradient is quantized in this program: diagnose the function that "
                "differentiates, with a recipe that quantizes gradients"
            )
        return diagnosed(records, notes)

    def replay(
        self,
        *args: Any,
        step: Any,
        site: int | str,
        operand: str | None = None,
        trips: Sequence[int] | None = None,
        shards: Mapping[str, int] | None = None,
        **kwargs: Any,
    ) -> list[Replayed]:
        """The noise of one site in one step of a run, drawn again without running the program.

        It depends on the step's key and on places, not on values, devices or what ran before. On
        chips that round by an instruction of their own, noise is another: see ``explain``.

        Args:
          *args, **kwargs: fun's own; ``jax.ShapeDtypeStruct`` will do; those of the last call that
            was traced if there are none.
          step: with a base key, the number of the call; otherwise the call's ``sr_key``.
          site: number of the site, or its path, in which ``*`` stands for anything.
          operand: ``lhs`` or ``rhs``; None: all that are rounded stochastically.
          trips: an iteration of each loop around the site, outermost first; None: all.
          shards: by name, places along mesh axes of ``shard_map``; 0 where nothing is said.

        Returns:
          One for each operand and iteration; none if the site draws no noise.

        Raises:
          ValueError: there is no such site; all noise is that of write-backs and casts, which is
            not replayed; or no arguments and nothing was called yet.
        """
        if not args and not kwargs:
            if self._last is None:
                raise ValueError(f"{self.name} was not called yet: replay needs its arguments")
            args, kwargs = self._last
        plan = self._seen(self._transformation.traced, args, kwargs).plan
        key = as_words(step) if self._base is None else self._counted(step)
        root = None if self._options.mode == "inference" else key_words(key)
        return replayed(plan, root, site, operand, trips, shards or {})

    def _observed(
        self,
        observe: Callable[[Transformation], None],
        args: Any,
        kwargs: Any,
        sr_key: Any,
        sr_state: Any,
    ) -> Callable[[Recipe], Callable[[int], Any]]:
        """Of a recipe and a step's number, what the program returns; nothing is donated.

        Args:
          observe: lets somebody look at the program.
          args, kwargs, sr_key, sr_state: as of ``verify``.
        """
        if self._options.recipe.has_delayed_scales and sr_state is None:
            sr_state = self.init_state(*args, **kwargs)
        options = dataclasses.replace(self._options, layer="jaxpr", strict=False, dump=None)
        jit_options = jitting.without_donation(self._jit_options)
        base = next((key for key in (sr_key, self._base) if key is not None), 0)
        if options.mode == "inference":
            base = None

        def program(recipe: Recipe) -> Callable[[int], Any]:
            chosen = dataclasses.replace(options, recipe=recipe)
            copy = SrjitFunction(self._fun, chosen, base, jit_options)
            observe(copy._transformation)

            def run(step: int) -> Any:
                key = None if base is None else copy._counted(step)
                given = key if sr_state is None else Stateful(key, sr_state)
                out = copy._jit.of(args)(given, *args, **kwargs)
                return out if sr_state is None or type(out) is Watched else out[0]

            return run

        return program

    def _key_to_look_with(self, sr_key: Any) -> Any:
        """What stands for a call's key where nothing runs; it does not count as a call."""
        if sr_key is not None:
            return as_words(sr_key)
        if self._options.mode == "inference":
            return None
        if self._base is not None:
            return self._counted(self.calls)
        return IfNeeded(jax.eval_shape(lambda: jax.random.key(0)))

    def keyed(self, key: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        """The ``jax.jit`` that runs for these arguments, and what it takes as its first one.

        Args:
          key: what to give it as the key, a type of ``srjit.calling.keys``, if it takes one.
          args, kwargs: fun's own.
        """
        given = None if self._options.mode == "inference" else key
        state = self.init_state(*args, **kwargs) if self._options.recipe.has_delayed_scales else {}
        return self._jit.of(args), Stateful(given, state) if state else given

    def made_of(self) -> tuple[Callable[..., Any], Options, dict[str, Any]]:
        """The function, how it is rewritten, and the options of ``jax.jit``, as they were given."""
        return self._fun, self._options, dict(self._jit_options)

    def clear_cache(self) -> None:
        """As of ``jax.jit``."""
        for jitted in (self._jit, self._watched):
            if jitted is not None:
                jitted.clear_cache()


def _shape_of(leaf: Any) -> Any:
    """An array's shape and dtype; anything else as it is."""
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        return leaf
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def replay(fn: SrjitFunction, *args: Any, **options: Any) -> list[Replayed]:
    """``fn.replay(*args, step=..., site=...)``: the noise of one site in one step of a run."""
    return fn.replay(*args, **options)


# --------------------------------------------------------------------------- where people decide


def keep_high_precision() -> Any:
    """A context: what is traced inside, and its gradients, stays in high precision."""
    return jax.named_scope(KEEP_SCOPE)


def role(role: Role, gradient: int | None = None) -> Any:
    """A context that says what the products traced inside compute.

    Args:
      role: ``fprop``, ``dgrad`` or ``wgrad``.
      gradient: for ``dgrad`` and ``wgrad``, which operand is the incoming gradient: 0 or 1.

    Raises:
      ValueError: unknown role, or a gradient that does not go with it.
    """
    if role not in recipes.ROLES:
        raise unknown_name("role", role, recipes.ROLES)
    if (role == "fprop") != (gradient is None) or gradient not in (None, 0, 1):
        raise ValueError(
            f"role {role!r} takes gradient=0 or 1, unless it is 'fprop': got {gradient!r}"
        )
    return jax.named_scope(role_scope(role, gradient))
