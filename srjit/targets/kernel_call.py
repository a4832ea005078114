"""A kernel where a chip runs it, and everywhere else the formula that it computes.

Most kernels do not partition: they are used where a program runs on one device, and inside of a
``shard_map`` over all axes of a mesh. Whether it does is known when the program is lowered.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Generator
from typing import Any

import jax
from jax.extend import core as jex_core
from jax.interpreters import batching, mlir

from srjit import _compat

_allowed = contextvars.ContextVar("allowed", default=True)


@contextlib.contextmanager
def without_kernels() -> Generator[None]:
    """Lowers programs without kernels, as if they were parts of programs on several devices."""
    token = _allowed.set(False)
    try:
        yield
    finally:
        _allowed.reset(token)


def kernel_call(
    *args: Any,
    kernel: Callable[..., Any],
    formula: Callable[..., Any],
    platform: str,
    partitions: bool = False,
    by_xla: bool = False,
) -> Any:
    """``kernel(*args)`` or, if it is lowered for something else, ``formula(*args)``.

    Args:
      *args: pytrees of arrays.
      kernel: a function with the results of ``formula``, to the bit.
      formula: plain operations; what vmap maps.
      platform: that the kernel is for, as JAX calls it.
      partitions: whether it may be a part of a program on several devices.
      by_xla: whether it is of XLA's own operations, which are there without kernels too.
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
) -> Any:
    given = context.platforms or context.module_context.platforms
    allowed = by_xla or _allowed.get()
    fits = allowed and (partitions or _compat.runs_alone(context))
    fun = _flat(kernel if fits and tuple(given) == (platform,) else formula)
    return mlir.lower_fun(fun, multiple_results=True)(context, *args)


batching.primitive_batchers[kernel_call_p] = _batch
mlir.register_lowering(kernel_call_p, _lowered)
_compat.lowers_for_devices(kernel_call_p)  # kernels may be partitioned by hand
