"""``rejit``: a lowered program, rewritten by a pipeline of passes, and callable again."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, Protocol, cast

import jax
import jax.export
import jax.numpy as jnp
from jax.core import Tracer

from srjit import _compat, passes
from srjit._mlir import ir
from srjit.calling import stages
from srjit.calling.keys import IfNeeded, Stateful, key_words
from srjit.modules import source
from srjit.modules.interface import Interface, marks_of, words_of
from srjit.numerics.random_bits import mix, warn_of_repetition
from srjit.passes import PassError
from srjit.passes.driver.entry import make_main
from srjit.passes.mlir.serialization import copy_of, text_of
from srjit.passes.report import report_of
from srjit.program.stablehlo.operations import main_of, types_of
from srjit.report.report import Report

# A pipeline's own noise on a program that has srjit's already: sites are numbered from 0 in both.
_SECOND = 0x52454A54


class SupportsRun(Protocol):
    """A rewriting of modules in place, such as a ``srjit.passes`` pipeline."""

    def run(self, module: Any, /) -> Any:
        """Rewrites."""


def rejit(program: Any, pipeline: SupportsRun | str, *, entry: str | None = None) -> Rejitted:
    """A lowered program, rewritten by a pipeline, and callable again.

    The rewriting is of a copy: what ``program`` comes from stays what it is. What the pipeline has
    done to it is ``as_text()``.

    Args:
      program: what ``jax.jit(f).lower(...)``, ``srjit(f).lower(...)`` or ``jax.export.export(...)``
        returned; or a module: an ``ir.Module``, MLIR's text or bytecode, a StableHLO portable
        artifact, a serialized ``jax.export.Exported``, or the path of a file with one of these.
      pipeline: of ``srjit.passes``, or its text.
      entry: of a module, the function to call where that is not ``@main``: ``"forward"``, or in
        nested modules ``"inner::forward"``.

    Returns:
      A function called as ``f`` is, with the keywords ``sr_key`` (a typed PRNG key or an integer
      step) if the pipeline has it round stochastically, and ``sr_state`` if it has delayed scales.
      Pytrees, shardings, donation, callbacks and effects are those of ``f``; static arguments are
      left out, as with ``jax.stages.Compiled``. A module that comes without its function takes flat
      arrays and returns an array, or a tuple of them. Of a module no device is looked for before
      the first call, which raises ValueError if there are not as many as it is for.

    Raises:
      ValueError: the module does not parse, has no such function, or is one that no other process
        can run; or the pipeline changed what the function takes or returns.
      TypeError: ``program`` is none of these.

    Example:
      >>> lowered = jax.jit(step).lower(params, batch)
      >>> step = srjit.rejit(lowered, "srjit-annotate-matmuls,srjit-insert-quantize{recipe=int8},"
      ...                             "srjit-legalize{target=cpu}")
      >>> params = step(params, batch, sr_key=0)
    """
    if isinstance(pipeline, str):
        pipeline = passes.parse(pipeline)
    if not hasattr(pipeline, "run"):
        raise TypeError(
            f"expected a pipeline (srjit.passes.parse(text), or its text), got {pipeline!r}"
        )
    if isinstance(program, stages.Lowered):
        # The function that lowered it has its own key, which comes first.
        again = rejit(program._stage, pipeline)  # pyright: ignore[reportPrivateUsage]
        return _RejitOfSrjit(again, program)
    if isinstance(program, (stages.Traced, jax.stages.Traced, jax.stages.Wrapped)):
        raise TypeError(
            f"rejit takes what .lower(...) returns, or a module; got {type(program).__name__}: "
            "lower it first"
        )
    program = source.opened(program)
    of_jax = isinstance(program, (jax.stages.Lowered, jax.export.Exported))
    if of_jax and entry is not None:
        raise TypeError("entry= is for modules: what JAX lowered or exported has one function")
    if isinstance(program, jax.stages.Lowered):
        return _rejit_lowered(program, pipeline)
    if isinstance(program, jax.export.Exported):
        return _rejit_exported(program, pipeline)
    return _rejit_module(*source.read(program, entry), pipeline)


def _rejit_lowered(lowered: Any, pipeline: SupportsRun) -> Rejitted:
    module = copy_of(_compat.module_of(lowered))
    inputs, outputs = types_of(main_of(module.operation))
    name = _compat.name_of_module(lowered)
    again = _rewritten(lambda: (lowered, module), name, module, pipeline, len(inputs), len(outputs))
    _ = again.lowered  # says now what cannot be rewritten
    return again


def _rejit_exported(exported: Any, pipeline: SupportsRun) -> Rejitted:
    name = exported.fun_name
    module, _ = source.read(exported.mlir_module_serialized, None)
    source.refuse_callbacks(module, name)
    inputs, outputs = types_of(main_of(module.operation))
    source.avals_of(inputs, name, "argument")
    source.avals_of(outputs, name, "result")

    def lower() -> tuple[Any, ir.Module]:
        own = source.for_platform(module, exported, jax.default_backend())
        given = exported.in_avals, exported.out_avals, exported.nr_devices
        kept, trees = exported.module_kept_var_idx, (exported.in_tree, exported.out_tree)
        return _compat.lowered_module(own, name, *given, kept=kept, trees=trees), own

    return _rewritten(lower, name, module, pipeline, len(inputs), len(outputs))


def _rejit_module(module: ir.Module, name: str, pipeline: SupportsRun) -> Rejitted:
    source.refuse_callbacks(module, name)
    # What an earlier rewriting appended counts as appended, so that its modules run too.
    taken, returned = (marks.count({}) for marks in marks_of(module))
    inputs, outputs = types_of(main_of(module.operation))
    given = (
        source.avals_of(inputs[:taken], name, "argument"),
        source.avals_of(outputs[:returned], name, "result"),
        source.partitions_of(module, name),
    )

    def lower() -> tuple[Any, ir.Module]:
        own = copy_of(module)
        make_main(own.operation)
        return _compat.lowered_module(own, name, *given), own

    return _rewritten(lower, name, module, pipeline, taken, returned)


def _rewritten(
    lower: Callable[[], tuple[Any, ir.Module]],
    name: str,
    module: ir.Module,
    pipeline: SupportsRun,
    taken: int,
    returned: int,
) -> Rejitted:
    """A program whose module, which takes and returns so much, a pipeline rewrites.

    ``lower`` then gives the program as it was, and the rewritten module as JAX runs it.
    """
    with module.context, ir.Location.unknown():
        pipeline.run(module)
    interface = Interface.of(module, taken, returned)

    def lowered() -> jax.stages.Lowered:
        program, rewritten = lower()
        try:
            return _compat.with_more_arguments(
                program, rewritten, interface.arguments(), interface.results()
            )
        except NotImplementedError as error:
            raise ValueError(f"srjit.rejit cannot run {name}: {error}") from error

    return Rejitted(name, module, interface, lowered, pipeline)


class Rejitted:
    """A program that a pipeline has rewritten; made by ``rejit``.

    Attributes:
      name: what messages call it.
      module: the rewritten module; changing it has no effect once the program has been compiled.
      pipeline: what rewrote it.
      takes_key: whether calls need ``sr_key``.
    """

    def __init__(
        self,
        name: str,
        module: ir.Module,
        interface: Interface,
        lowered: Callable[[], jax.stages.Lowered],
        pipeline: SupportsRun,
    ) -> None:
        self.name, self.module, self.pipeline = name, module, pipeline
        self._lower = lowered
        self.interface, self.takes_key = interface, interface.key != "none"
        self._lock = threading.Lock()
        self._compiled: Any = None
        self.__name__ = self.__qualname__ = name

    @functools.cached_property
    def lowered(self) -> jax.stages.Lowered:
        """JAX's own value of it, called with ``(args, kwargs, [key, *states])``."""
        return self._lower()

    def __repr__(self) -> str:
        takes = ["sr_key"] * self.takes_key + ["sr_state"] * bool(self.interface.states)
        return f"<srjit.rejit of {self.name}{': takes ' + ', '.join(takes) if takes else ''}>"

    def __call__(self, *args: Any, sr_key: Any = None, sr_state: Any = None, **kwargs: Any) -> Any:
        """Calls the rewritten program; the first call compiles it.

        Args:
          *args, **kwargs: as of the original.
          sr_key: a typed PRNG key or an integer step, if the program rounds stochastically.
          sr_state: for delayed scales, what ``init_state`` or the last call returned.

        Returns:
          What the original returns; with ``sr_state``, a pair of that and the new state.

        Raises:
          TypeError: ``sr_key`` or ``sr_state`` is missing, or there is no need for it; or the
            arguments are not those that the program was lowered for.
          ValueError: ``sr_state`` is not of this program, or an array is on other devices.
        """
        warn_of_repetition(self.name, sr_key)
        words = None if sr_key is None else words_of(sr_key, (args, kwargs))
        return self.call(args, kwargs, words, sr_state)

    def call(self, args: Any, kwargs: Any, words: Any, sr_state: Any) -> Any:
        """Calls the program with a key's two words."""
        how = " as the pipeline has rewritten it,"
        self.interface.check(self.name, words is not None, sr_state, how)
        more = [] if words is None else [words]
        more += [sr_state[name] for name in self.interface.states]
        compiled = self._compiled or self._compile()
        try:
            out, state = compiled(args, kwargs, more)
        except ValueError:
            if (moved := self._moved(args, kwargs, more)) is None:
                raise
            out, state = compiled(*moved)
        except TypeError as error:
            leaves = jax.tree.leaves((args, kwargs, more))
            if any(isinstance(leaf, Tracer) for leaf in leaves):
                out, state = self._call_traced(args, kwargs, more)
            else:
                self._explain(error, args, kwargs)
                raise
        return (out, dict(zip(self.interface.states, state, strict=True))) if state else out

    def _compile(self) -> Any:
        with self._lock:
            compiled = self._compiled or self.lowered.compile()
            self._compiled = compiled
        return compiled

    def _moved(self, *given: Any) -> Any:
        """The arguments where XLA expects them, if some are elsewhere that nobody has placed."""
        leaves, tree = jax.tree.flatten(given)
        shardings = jax.tree.leaves(self._compile().input_shardings[0], is_leaf=lambda s: s is None)
        free = _compat.placed_by_xla(self.lowered)
        places = {
            i: s
            for i, (x, s) in enumerate(zip(leaves, shardings, strict=True))
            if i in free
            and isinstance(x, jax.Array)
            and not isinstance(x, Tracer)
            and not x.sharding.is_equivalent_to(s, x.ndim)
        }
        if not places:
            return None
        moved = [jax.device_put(x, places[i]) if i in places else x for i, x in enumerate(leaves)]
        return jax.tree.unflatten(tree, moved)

    def _call_traced(self, args: Any, kwargs: Any, more: Any) -> Any:
        """The same inside of another transformation, as what ``jax.export`` makes of the module."""
        leaves, tree = jax.tree.flatten((args, kwargs, more))
        exported = self._exported

        @jax.custom_jvp
        @jax.custom_batching.custom_vmap
        def call(*leaves: Any) -> Any:
            return exported.call(*jax.tree.unflatten(tree, leaves))

        @call.defjvp
        def differentiated(primals: Any, tangents: Any) -> Any:  # pyright: ignore[reportUnusedFunction]
            raise self._cannot("differentiate")

        @cast(Any, call.fun).def_vmap
        def batched(*_: Any) -> Any:  # pyright: ignore[reportUnusedFunction]
            raise self._cannot("batch")

        return call(*leaves)

    @functools.cached_property
    def _exported(self) -> Any:
        if source.called_back(self.module):
            raise NotImplementedError(
                f"{self.name}, rewritten by srjit.rejit, has host callbacks, and is called inside "
                "another transformation: there only srjit(..., layer='stablehlo') can keep them"
            )
        return _compat.export_lowered(self.lowered, self.name, source.targets_of(self.module))

    def _cannot(self, what: str) -> Exception:
        return NotImplementedError(
            f"JAX cannot {what} {self.name}, which srjit.rejit made of a lowered module: {what} "
            "the function before it is lowered, or use srjit(..., layer='jaxpr')"
        )

    def _explain(self, error: TypeError, args: Any, kwargs: Any) -> None:
        """Says, in terms of the arguments, how a call's pytrees differ from the program's."""
        tree = jax.tree.structure((args, kwargs))
        expected = jax.tree.structure(self.lowered.args_info[0][:2])
        if tree != expected:
            lines = "\n  ".join(_compat.differences(expected, tree))
            raise TypeError(
                f"{self.name} was lowered for arguments of another structure:\n  {lines}"
            ) from error

    @property
    def report(self) -> Report | None:
        """The report of every matrix multiplication; None if the pipeline quantizes nothing."""
        with self.module.context, ir.Location.unknown():
            try:
                return report_of(self.module.operation)
            except PassError:
                return None

    def init_state(self) -> dict[str, jax.Array]:
        """The state of delayed scales before the first step; empty if there are none."""
        return self.interface.init_state()

    def as_text(self, *, debug_info: bool = False) -> str:
        """The rewritten module.

        Args:
          debug_info: whether with locations.
        """
        return text_of(self.module, debug_info=debug_info)

    def compile(self) -> Rejitted:
        """Compiles at once, not at the first call."""
        self._compile()
        return self


class _RejitOfSrjit(Rejitted):
    """A program of a function that srjit had rewritten already, and a pipeline once more."""

    def __init__(self, again: Rejitted, lowered: stages.Lowered) -> None:
        self.__dict__.update(again.__dict__)
        self._again, self._own = again, lowered

    @functools.cached_property
    def _called(self) -> Any:
        return self._own.around(self._run)

    def __call__(self, *args: Any, sr_key: Any = None, sr_state: Any = None, **kwargs: Any) -> Any:
        """Calls it as a ``Rejitted``; both rewritings draw from the one key, apart."""
        return self._called(*args, sr_key=sr_key, sr_state=sr_state, **kwargs)

    def _run(self, key: Any, *args: Any, **kwargs: Any) -> Any:
        words = None
        if self.takes_key:
            plain = key.key if isinstance(key, Stateful) else key
            plain = plain.key if isinstance(plain, IfNeeded) else plain
            if plain is None:
                raise TypeError(
                    f"{self.name} was lowered without a key, and the pipeline has it round "
                    "stochastically: lower it with sr_key="
                )
            words = _second_words(plain)
        return self._again.call((key, *args), kwargs, words, None)


@jax.jit
def _second_words(key: Any) -> jax.Array:
    return jnp.stack(mix(key_words(key), _SECOND))
