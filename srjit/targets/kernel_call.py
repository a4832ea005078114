"""A kernel where a chip runs it, and everywhere else the formula that it computes.

Most kernels do not partition: they are used where a program runs on one device, and inside of a
``shard_map`` over all axes of a mesh. Whether it does is known when the program is lowered. In
other programs of several devices the formula is called, and the call says which kernel could run
on shards in its place: who knows how the call's arguments are sharded puts it there
(``passes/emit/on_shards.py``).
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Literal, Protocol

import jax
from jax.extend import core as jex_core
from jax.interpreters import batching, mlir

from srjit import _compat
from srjit._mlir import ir

Axes = tuple[tuple[str, ...], ...]  # of a mesh, that shard each dimension
_lowered_as = contextvars.ContextVar[Literal["itself", "part", "formulas"]]("as", default="itself")

# In which frontend attribute a call of a formula says which kernel could run on shards instead.
ON_SHARDS = "srjit_kernel"


def is_even(shape: Sequence[int], axes: Axes, sizes: Mapping[str, int]) -> bool:
    """True if a mesh cuts an array into equal parts.

    Args:
      shape: of the array.
      axes: that shard its first dimensions.
      sizes: of all axes of the mesh.
    """
    cut = (math.prod(sizes[name] for name in names) for names in axes)
    return not any(n % parts for n, parts in zip(shape, cut, strict=False))


class OnShards(Protocol):
    """A kernel on the shards of its arguments. Equal ones are one kernel."""

    def __call__(
        self,
        shapes: Sequence[tuple[int, ...]],
        axes: Sequence[Axes | None],
        sizes: Mapping[str, int],
        /,
    ) -> tuple[Callable[..., Any], Any, Any] | None:
        """The kernel of shards, with all axes manual.

        With ``in_specs`` of its first arguments (all have a copy of the others) and ``out_specs``,
        as of ``jax.shard_map``. None where there is none.

        Args:
          shapes: of the whole arguments, then of the results.
          axes: that shard each of them; None where they are parts of axes.
          sizes: of all axes of the mesh.
        """
        ...


@contextlib.contextmanager
def _lowering(what: Literal["part", "formulas"]) -> Generator[None]:
    token = _lowered_as.set("formulas" if _lowered_as.get() == "formulas" else what)
    try:
        yield
    finally:
        _lowered_as.reset(token)


def without_kernels() -> contextlib.AbstractContextManager[None]:
    """Lowers programs without kernels."""
    return _lowering("formulas")


def as_part() -> contextlib.AbstractContextManager[None]:
    """Lowers programs as parts of one on several devices."""
    return _lowering("part")


def kernel_call(
    *args: Any,
    kernel: Callable[..., Any],
    formula: Callable[..., Any],
    platform: str,
    partitions: bool = False,
    by_xla: bool = False,
    on_shards: OnShards | None = None,
) -> Any:
    """``kernel(*args)`` or, if it is lowered for something else, ``formula(*args)``.

    Args:
      *args: pytrees of arrays.
      kernel: a function with the results of ``formula``, to the bit.
      formula: plain operations; what vmap maps.
      platform: that the kernel is for, as JAX calls it; empty: for all.
      partitions: whether it may be a part of a program on several devices.
      by_xla: whether it is of XLA's own operations, which are there without kernels too.
      on_shards: how it runs on shards, where it does not partition.
    """
    leaves, args_tree = jax.tree.flatten(args)
    tree = jax.tree.structure(jax.eval_shape(formula, *args))
    of_leaves = [functools.partial(_of_leaves, fun, args_tree) for fun in (kernel, formula)]
    outs = kernel_call_p.bind(
        *leaves,
        kernel=of_leaves[0],
        formula=of_leaves[1],
        platform=platform,
        partitions=partitions,
        by_xla=by_xla,
        on_shards=on_shards,
    )
    return jax.tree.unflatten(tree, outs)


kernel_call_p = jex_core.Primitive("srjit_kernel")
kernel_call_p.multiple_results = True


def _of_leaves(fun: Callable[..., Any], tree: Any, *leaves: jax.Array) -> Any:
    return fun(*jax.tree.unflatten(tree, leaves))


def _flat(fun: Callable[..., Any]) -> Callable[..., list[Any]]:
    return lambda *args: jax.tree.leaves(fun(*args))


@kernel_call_p.def_impl
def _run(*args: Any, **params: Any) -> Any:
    return jax.jit(lambda *args: kernel_call_p.bind(*args, **params))(*args)


@kernel_call_p.def_abstract_eval
def _types(*args: Any, formula: Callable[..., Any], **_: Any) -> Any:
    return _compat.result_types(_flat(formula), *args)


def _batch(args: Any, dims: Any, *, formula: Callable[..., Any], **_: Any) -> Any:
    outs = jax.vmap(_flat(formula), in_axes=dims)(*args)
    return outs, [0] * len(outs)


def _lowered(
    context: Any,
    *args: Any,
    kernel: Any,
    formula: Any,
    platform: str,
    partitions: bool,
    by_xla: bool,
    on_shards: OnShards | None,
) -> Any:
    given = tuple(context.platforms or context.module_context.platforms)
    lowered_as = _lowered_as.get()
    platform = platform or given[0]
    allowed = given == (platform,) and (by_xla or lowered_as != "formulas")
    alone = lowered_as != "part" and _compat.runs_alone(context)
    if allowed and not (partitions or alone) and on_shards is not None:
        return _called(context, formula, _number_of(on_shards, platform), *args)
    fun = _flat(kernel if allowed and (partitions or alone) else formula)
    return mlir.lower_fun(fun, multiple_results=True)(context, *args)


def _called(context: Any, formula: Any, number: int, *args: Any) -> Any:
    """A call of a formula that says the number of a kernel."""

    def srjit_formula(*args: Any) -> list[Any]:
        return _flat(formula)(*args)

    call = jax.jit(srjit_formula)
    outs = mlir.lower_fun(lambda *args: call(*args), multiple_results=True)(context, *args)
    said: dict[str, ir.Attribute] = {ON_SHARDS: ir.StringAttr.get(str(number))}
    made_by = outs[0].owner
    while made_by.name != "func.call":  # with types that tell shardings, a constraint is behind it
        made_by = made_by.operands[0].owner
    made_by.attributes["mhlo.frontend_attributes"] = ir.DictAttr.get(said)
    return outs


_known: dict[tuple[OnShards, str], int] = {}


def _number_of(on_shards: OnShards, platform: str) -> int:
    return _known.setdefault((on_shards, platform), len(_known))


def numbered(number: str) -> tuple[OnShards, str] | None:
    """The kernel that a call says, and its platform; None if this process has not lowered it."""
    found = list(_known)
    return found[int(number)] if number.isdecimal() and int(number) < len(found) else None


batching.primitive_batchers[kernel_call_p] = _batch
mlir.register_lowering(kernel_call_p, _lowered)
_compat.lowers_for_devices(kernel_call_p)  # kernels may be partitioned by hand
