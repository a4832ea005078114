"""``rejit``: a lowered program, rewritten by a pipeline of passes, and callable again."""

from __future__ import annotations

import dataclasses
import functools
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp
from jax.core import ShapedArray, Tracer
from jax.extend import mlir as jex_mlir

from srjit import _compat, passes
from srjit._mlir import ir, new_context
from srjit.calling import stages
from srjit.calling.keys import IfNeeded, Stateful, from_host, is_host_value, key_words
from srjit.numerics.random_bits import mix
from srjit.passes import PassError
from srjit.passes.report import report_of
from srjit.program.stablehlo.operations import main_of, types_of
from srjit.report.report import Report

KEY = "srjit.key"
STATE = "srjit.state"
# Custom calls whose callback is a Python function of the process that lowered the module.
_CALLBACKS = ("python_cpu_callback", "python_gpu_callback", "python_tpu_callback")
# A pipeline's own noise on a program that has srjit's already: sites are numbered from 0 in both.
_SECOND = 0x52454A54


class SupportsRun(Protocol):
    """What rewrites a module in place: a ``srjit.passes`` pipeline."""

    def run(self, module: Any, /) -> Any:
        """Rewrites."""


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a rewritten ``@main`` takes and returns beyond what the original did; all of it last.

    Attributes:
      has_key: whether it takes the two words of a key, ``tensor<2xui32> {srjit.key}``.
      states: names and shapes of its delayed scales' histories, in order.
    """

    has_key: bool
    states: dict[str, tuple[int, ...]]

    @classmethod
    def of(cls, module: Any, arguments: int, results: int) -> Signature:
        """Reads the marks on ``@main``.

        Args:
          module: rewritten.
          arguments, results: how many the original had.

        Raises:
          ValueError: there are other new arguments or results than those, or fewer than before.
        """
        main = main_of(module.operation)
        inputs, outputs = types_of(main)
        types = [str(t) for t in inputs]
        marks = _marks(main, "arg_attrs", len(types))
        returned = _marks(main, "res_attrs", len(outputs))
        has_key = any(KEY in m for m in marks)
        names = [m[STATE] for m in marks if STATE in m]
        expected = [{}] * arguments + [{KEY: ""}] * has_key + [{STATE: n} for n in names]
        after = [{}] * results + [{STATE: n} for n in names]
        if marks != expected or returned != after or len(set(names)) != len(names):
            raise ValueError(
                f"@main of the rewritten module takes {_said(marks)} and returns "
                f"{_said(returned)}; the original takes {arguments} arguments and returns "
                f"{results} results. A pass may append one argument "
                "tensor<2xui32> {srjit.key}, and after it, for each "
                'history, an argument {srjit.state = "name"} and a result of that mark, no more'
            )
        if has_key and types[arguments] != "tensor<2xui32>":
            raise ValueError(f"the argument {{{KEY}}} is a {types[arguments]}, not tensor<2xui32>")
        shapes = [_shape(t) for t in inputs[arguments + has_key :]]
        return cls(has_key, dict(zip(names, shapes, strict=True)))

    def arguments(self) -> dict[str, Any]:
        """Avals of the arguments, by what messages call them."""
        key = {"sr_key": ShapedArray((2,), jnp.dtype("uint32"))} if self.has_key else {}
        names = [f"sr_state[{name!r}]" for name in self.states]
        return {**key, **dict(zip(names, self.results(), strict=True))}

    def results(self) -> list[Any]:
        """Avals of the results."""
        return [ShapedArray(s, jnp.dtype("float32")) for s in self.states.values()]


def rejit(program: Any, pipeline: SupportsRun | str) -> Rejitted:
    """A lowered program, rewritten by a pipeline, and callable again.

    The rewriting is of a copy: what ``program`` comes from stays what it is. What the pipeline has
    done to it is ``as_text()``.

    Args:
      program: what ``jax.jit(f).lower(...)`` or ``srjit(f).lower(...)`` returned; or a module: an
        ``ir.Module``, MLIR's text or bytecode, or the path of a ``.mlir`` file.
      pipeline: of ``srjit.passes``, or its text.

    Returns:
      A function called as ``f`` is, with the keywords ``sr_key`` (a typed PRNG key or an integer
      step) if the pipeline has it round stochastically, and ``sr_state`` if it has delayed scales.
      Pytrees, shardings, donation, callbacks and effects are those of ``f``; static arguments are
      left out, as with ``jax.stages.Compiled``. A module that comes without its function takes flat
      arrays and returns an array, or a tuple of them.

    Raises:
      ValueError: the module does not parse, has no ``@main``, or is one that no other process can
        run; or the pipeline changed what ``@main`` takes or returns.
      TypeError: ``program`` is none of these.

    Example:
      >>> lowered = jax.jit(step).lower(params, batch)
      >>> step = srjit.rejit(lowered, "srjit-annotate-matmuls,srjit-insert-quantize{recipe=int8},"
      ...                             "srjit-legalize{target=cpu}")
      >>> params = step(params, batch, sr_key=0)
    """
    run = pipeline_of(pipeline)
    if isinstance(program, stages.Lowered):
        # The function that lowered it has its own key, which comes first.
        again = rejit(program._lowered, run)  # pyright: ignore[reportPrivateUsage]
        return _RejitOfSrjit(again, program)
    if isinstance(program, (stages.Traced, jax.stages.Traced, jax.stages.Wrapped)):
        raise TypeError(
            f"rejit takes what .lower(...) returns, or a module; got {type(program).__name__}: "
            "lower it first"
        )
    if isinstance(program, jax.stages.Lowered):
        return _rejit_lowered(program, run)
    return _rejit_module(*_read(program), run)


def _rejit_lowered(lowered: Any, pipeline: SupportsRun) -> Rejitted:
    name = _compat.name_of_module(lowered)
    module = copy_of(_compat.module_of(lowered))
    inputs, outputs = types_of(main_of(module.operation))
    counts = len(inputs), len(outputs)
    run_pipeline(pipeline, module)
    signature = Signature.of(module, *counts)
    try:
        rewritten = _compat.with_more_arguments(
            lowered, module, signature.arguments(), signature.results()
        )
    except NotImplementedError as error:
        raise ValueError(f"srjit.rejit cannot run {name}: {error}") from error
    return Rejitted(name, module, signature, rewritten, lowered.in_tree, pipeline)


def _rejit_module(module: Any, name: str, pipeline: SupportsRun) -> Rejitted:
    main = main_of(module.operation)
    inputs, outputs = types_of(main)
    _check_runs_here(module, name)
    # What an earlier rewriting appended counts as appended, so that its modules run too.
    marks = _marks(main, "arg_attrs", len(inputs))
    returned = _marks(main, "res_attrs", len(outputs))
    counts = marks.count({}), returned.count({})
    run_pipeline(pipeline, module)
    signature = Signature.of(module, *counts)
    inputs, outputs = types_of(main_of(module.operation))
    arguments = [_aval(t, name, "argument", i) for i, t in enumerate(inputs)]
    results = [_aval(t, name, "result", i) for i, t in enumerate(outputs)]
    first = _compat.lowered_module(
        module, name, arguments[: counts[0]], results[: counts[1]], _partitions(module, name)
    )
    rewritten = _compat.with_more_arguments(
        first, module, signature.arguments(), signature.results()
    )
    return Rejitted(name, module, signature, rewritten, first.in_tree, pipeline)


class Rejitted:
    """A program that a pipeline has rewritten; made by ``rejit``.

    Attributes:
      name: what messages call it.
      module: the rewritten module; changing it has no effect once the program has been compiled.
      pipeline: what rewrote it.
      lowered: a ``jax.stages.Lowered`` of it, called with ``(args, kwargs, [key, *states])``.
      takes_key: whether calls need ``sr_key``.
    """

    def __init__(
        self,
        name: str,
        module: Any,
        signature: Signature,
        lowered: Any,
        in_tree: Any,
        pipeline: SupportsRun,
    ) -> None:
        self.name, self.module, self.pipeline = name, module, pipeline
        self.lowered, self.takes_key = lowered, signature.has_key
        self._signature, self._in_tree = signature, in_tree
        self._lock = threading.Lock()
        self._compiled: Callable[..., Any] | None = None
        self.__name__ = self.__qualname__ = name

    def __repr__(self) -> str:
        takes = ["sr_key"] * self._signature.has_key + ["sr_state"] * bool(self._signature.states)
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
        words = None if sr_key is None else words_of(sr_key)
        return self.call(args, kwargs, words, sr_state)

    def call(self, args: Any, kwargs: Any, words: Any, sr_state: Any) -> Any:
        """As ``__call__``, of a key's two words."""
        more = self._more(words, sr_state)
        compiled = self._compiled or self._compile()
        try:
            out, state = compiled(args, kwargs, more)
        except TypeError as error:
            leaves = jax.tree.leaves((args, kwargs, more))
            if any(isinstance(leaf, Tracer) for leaf in leaves):
                out, state = self._call_traced(args, kwargs, more)
            else:
                self._explain(error, args, kwargs)
                raise
        return (out, dict(zip(self._signature.states, state, strict=True))) if state else out

    def _more(self, words: Any, sr_state: Any) -> list[Any]:
        signature = self._signature
        if (words is not None) != signature.has_key:
            raise TypeError(
                f"{self.name} rounds stochastically and needs a key: call it with sr_key=, a typed "
                "PRNG key such as jax.random.fold_in(key, step) or an integer step"
                if signature.has_key
                else f"{self.name} draws no noise as the pipeline has rewritten it, and takes no "
                "sr_key"
            )
        if (sr_state is not None) != bool(signature.states):
            raise TypeError(
                f"{self.name} has delayed scales, which are state: call it with sr_state=, at "
                "first .init_state(); the call then returns (result, new_state)"
                if signature.states
                else f"{self.name} has no delayed scales and takes no sr_state"
            )
        more = [words] if signature.has_key else []
        if sr_state is not None:
            shapes = {name: jnp.shape(x) for name, x in sr_state.items()}
            if shapes != signature.states:
                raise ValueError(
                    f"sr_state does not fit {self.name}: it has {shapes or 'nothing'}, the program "
                    f"needs {signature.states}; make it with .init_state()"
                )
            more += [sr_state[name] for name in signature.states]
        return more

    def _compile(self) -> Callable[..., Any]:
        with self._lock:
            compiled = self._compiled or self.lowered.compile()
            self._compiled = compiled
        return compiled

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
        if called_back(self.module):
            raise NotImplementedError(
                f"{self.name}, rewritten by srjit.rejit, has host callbacks, and is called inside "
                "another transformation: there only srjit(..., layer='stablehlo') can keep them"
            )
        return _compat.export_lowered(self.lowered, self.name, targets_of(self.module))

    def _cannot(self, what: str) -> Exception:
        return NotImplementedError(
            f"JAX cannot {what} {self.name}, which srjit.rejit made of a lowered module: {what} "
            "the function before it is lowered, or use srjit(..., layer='jaxpr')"
        )

    def _explain(self, error: TypeError, args: Any, kwargs: Any) -> None:
        """Says, in terms of the arguments, how a call's pytrees differ from the program's."""
        tree = jax.tree.structure((args, kwargs))
        if tree != self._in_tree:
            lines = "\n  ".join(_compat.differences(self._in_tree, tree))
            raise TypeError(
                f"{self.name} was lowered for arguments of another structure:\n  {lines}"
            ) from error

    @property
    def report(self) -> Report | None:
        """What became of every matrix multiplication; None if the pipeline quantizes nothing."""
        with self.module.context, ir.Location.unknown():
            try:
                return report_of(self.module.operation)
            except PassError:
                return None

    def init_state(self) -> dict[str, jax.Array]:
        """The state of delayed scales before the first step; empty if there are none."""
        shapes = self._signature.states.items()
        return {name: jnp.zeros(shape, jnp.float32) for name, shape in shapes}

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
        """As of ``Rejitted``; the key is that of both rewritings, which draw from it apart."""
        return self._called(*args, sr_key=sr_key, sr_state=sr_state, **kwargs)

    def _run(self, key: Any, *args: Any, **kwargs: Any) -> Any:
        words = None
        if self._signature.has_key:
            plain = key.key if isinstance(key, (Stateful,)) else key
            plain = plain.key if isinstance(plain, IfNeeded) else plain
            if plain is None:
                raise TypeError(
                    f"{self.name} was lowered without a key, and the pipeline has it round "
                    "stochastically: lower it with sr_key="
                )
            words = _second_words(plain)
        return self._again.call((key, *args), kwargs, words, None)


# ------------------------------------------------------------------------------------------- keys


@jax.jit
def _stacked(key: Any) -> jax.Array:
    return jnp.stack(key_words(key))


@jax.jit
def _second_words(key: Any) -> jax.Array:
    return jnp.stack(mix(key_words(key), _SECOND))


def words_of(sr_key: Any) -> jax.Array:
    """The two key words of a call's key, as one array.

    Raises:
      TypeError: it is not a key.
    """
    return _stacked(from_host(sr_key) if is_host_value(sr_key) else sr_key)


# ---------------------------------------------------------------------------------------- modules


def pipeline_of(pipeline: Any) -> SupportsRun:
    """A pipeline, of its text if that is what it is."""
    if isinstance(pipeline, str):
        return passes.parse(pipeline)
    if not hasattr(pipeline, "run"):
        raise TypeError(
            f"expected a pipeline (srjit.passes.parse(text), or its text), got {pipeline!r}"
        )
    return pipeline


def run_pipeline(pipeline: SupportsRun, module: Any) -> None:
    """Rewrites a module in place, in its context."""
    with module.context, ir.Location.unknown():
        pipeline.run(module)


def copy_of(module: Any) -> Any:
    """A copy of a module, in a context of its own and with all its locations."""
    with module.context:
        code = _bytecode(module)
    with new_context():
        return ir.Module.parse(code)


def _bytecode(module: Any) -> bytes:
    import io

    buffer = io.BytesIO()
    module.operation.write_bytecode(buffer)
    return buffer.getvalue()


def text_of(module: Any, *, debug_info: bool = False) -> str:
    """A module's text."""
    return module.operation.get_asm(enable_debug_info=debug_info)


def _marks(main: Any, which: str, count: int) -> list[dict[str, str]]:
    """srjit's marks on the arguments or results of a function."""
    attributes = main.operation.attributes
    if which not in attributes:
        return [{} for _ in range(count)]
    marks: list[dict[str, str]] = []
    for attribute in ir.ArrayAttr(attributes[which]):
        given = ir.DictAttr(attribute)
        mark = {KEY: ""} if KEY in given else {}
        if STATE in given:
            mark[STATE] = ir.StringAttr(given[STATE]).value
        marks.append(mark)
    return marks + [{}] * (count - len(marks))  # a pass may have added what it did not mark


def _said(marks: Sequence[dict[str, str]]) -> str:
    plain, marked = marks.count({}), [n for m in marks for n in m]
    return f"{plain} unmarked" + "".join(f", {{{n}}}" for n in marked)


def _shape(kind: Any) -> tuple[int, ...]:
    return tuple(ir.RankedTensorType(kind).shape)


@functools.cache
def _dtypes() -> dict[str, Any]:
    """dtypes by the text of their MLIR types."""
    from jax.interpreters import mlir

    names = [
        "bool", "int2", "int4", "int8", "int16", "int32", "int64", "uint2", "uint4", "uint8",
        "uint16", "uint32", "uint64", "bfloat16", "float16", "float32", "float64", "complex64",
        "complex128", "float8_e4m3fn", "float8_e5m2", "float8_e4m3", "float8_e3m4",
        "float8_e4m3b11fnuz", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu",
        "float4_e2m1fn",
    ]  # fmt: skip
    found: dict[str, Any] = {}
    with new_context():
        for name in names:
            try:
                dtype = jnp.dtype(getattr(jnp, name, name))
                found[str(mlir.dtype_to_ir_type(dtype))] = dtype
            except (TypeError, KeyError):  # newer than this JAX
                continue
    return found


def _aval(kind: Any, name: str, what: str, number: int) -> Any:
    try:
        tensor = ir.RankedTensorType(kind)
        dtype = _dtypes()[str(tensor.element_type)]
    except (ValueError, KeyError):
        tensor = dtype = None
    if tensor is None or not tensor.has_static_shape:
        raise ValueError(
            f"{what} {number} of {name} is a {kind}: srjit.rejit runs modules whose arguments and "
            "results are tensors of static shape and of JAX's dtypes"
        )
    return ShapedArray(tuple(tensor.shape), dtype)


def _partitions(module: Any, name: str) -> int:
    counts: list[int] = []
    for attribute in ("mhlo.num_partitions", "mhlo.num_replicas"):
        given = module.operation.attributes
        counts.append(ir.IntegerAttr(given[attribute]).value if attribute in given else 1)
    if counts[1] != 1:
        raise ValueError(f"{name} is for {counts[1]} replicas (mhlo.num_replicas): JAX has one")
    return counts[0]


def targets_of(module: Any) -> list[str]:
    """What the custom calls of a module call."""
    found: dict[str, None] = {}

    def visit(op: Any) -> Any:
        if op.name == "stablehlo.custom_call":
            found[ir.StringAttr(op.attributes["call_target_name"]).value] = None
        elif op.name in ("stablehlo.send", "stablehlo.recv"):
            found[op.name] = None
        return ir.WalkResult.ADVANCE

    module.operation.walk(visit)
    return list(found)


def called_back(module: Any) -> list[str]:
    """The custom calls of a module that call Python functions of the process that lowered it."""
    return [
        target
        for target in targets_of(module)
        if target.endswith(_CALLBACKS) or target in ("stablehlo.send", "stablehlo.recv")
    ]


def _check_runs_here(module: Any, name: str) -> None:
    found = called_back(module)
    if found:
        raise ValueError(
            f"{name} calls Python functions of the process that lowered it ({', '.join(found)}), "
            "which a module does not contain: give srjit.rejit what .lower(...) returned, in that "
            "process, or lower the program without jax.debug.print, pure_callback and io_callback"
        )


def _read(program: Any) -> tuple[Any, str]:
    """A module of its own of whatever a module is given as, and its name."""
    name = "the module"
    if isinstance(program, ir.Module):
        module = copy_of(program)
    elif isinstance(program, (str, bytes, bytearray, os.PathLike)):
        source: Any = program
        if isinstance(program, os.PathLike) or _is_path(program):
            name = os.fspath(cast(Any, program))
            source = Path(cast(Any, program)).read_bytes()
        module = _parse(source, name)
    else:
        raise TypeError(
            "srjit.rejit takes what jax.jit(f).lower(...) returns, an ir.Module, MLIR's text or "
            f"bytecode, or the path of an .mlir file; got {type(program).__name__}"
        )
    given = module.operation.attributes
    if "sym_name" in given and name == "the module":
        name = ir.StringAttr(given["sym_name"]).value
    if "sym_name" not in given:  # JAX compiles none without
        given["sym_name"] = ir.StringAttr.get("rejitted", module.context)
    return module, name


def _is_path(program: Any) -> bool:
    if not isinstance(program, str) or "\n" in program or "{" in program:
        return False
    return program.endswith((".mlir", ".mlirbc", ".bc")) or os.path.exists(program)


def _parse(source: str | bytes | bytearray, name: str) -> Any:
    code = source.encode() if isinstance(source, str) else bytes(source)
    with new_context() as context:
        try:
            if b"StableHLO_v" in code[:64]:  # a portable artifact: VHLO inside
                return jex_mlir.deserialize_portable_artifact(context, code)
            return ir.Module.parse(code)
        except (ir.MLIRError, ValueError) as error:
            raise ValueError(f"{name} is no MLIR module: {error}") from error
