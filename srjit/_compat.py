"""Everything that differs between JAX versions, and every private import, each with its reason."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import os
from collections.abc import Generator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax._src import core as _core  # whether a transformation is under way
from jax._src import shard_map as _shard_map  # its primitive is not exported
from jax._src import source_info_util  # typed name stacks and frames: see name_stack
from jax._src.interpreters import partial_eval  # dead-code elimination: see dce
from jax._src.named_sharding import UNSPECIFIED  # what jit says of a sharding nobody gave
from jax.extend import core as jex_core
from jax.extend.core import primitives as jex_primitives

shard_map_p = _shard_map.shard_map_p


def varying_axes(x: jax.Array) -> tuple[str, ...]:
    """Mesh axes of an enclosing ``shard_map`` over which ``x`` differs, by its type."""
    return tuple(sorted(jax.typeof(x).manual_axis_type.varying))


def result_type(fun: Any, *avals: Any) -> Any:
    """The aval of ``fun``'s one result, with its sharding and the mesh axes it varies over."""
    structs = [
        jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=_typed_sharding(a), **_vma(a))
        for a in avals
    ]
    return jax.make_jaxpr(fun)(*structs).out_avals[0]


def _typed_sharding(aval: Any) -> Any:
    """An aval's sharding where an explicit mesh gives it one."""
    mesh = aval.sharding.mesh
    return None if mesh.empty else aval.sharding


def _vma(aval: Any) -> dict[str, Any]:
    manual = aval.manual_axis_type
    return {} if manual.empty else {"manual_axis_type": manual}


def explicit_sharding(aval: Any) -> Any:
    """The sharding of an aval under a mesh whose axes are all explicit, else None."""
    sharding = getattr(aval, "sharding", None)
    mesh = getattr(sharding, "mesh", None)
    explicit = mesh is not None and not mesh.empty and mesh.are_all_axes_explicit
    return sharding if explicit else None


# ------------------------------------------------------------------------------------------- jaxprs


def open_jaxpr(closed: Any) -> tuple[Any, Sequence[Any]]:
    """A jaxpr and its constants. From jax 0.11 on a closed jaxpr may be the jaxpr itself."""
    inner = getattr(closed, "jaxpr", closed)
    return inner, getattr(closed, "consts", ())


def called_jaxpr(eqn: Any) -> Any:
    """The jaxpr that an equation evaluates once on its operands."""
    return eqn.params["jaxpr"] if "jaxpr" in eqn.params else eqn.params["call_jaxpr"]


def jaxprs_of(eqn: Any) -> Generator[Any]:
    """All jaxprs among the parameters of an equation."""
    for value in eqn.params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(open_jaxpr(item)[0], "eqns"):
                yield item


@dataclasses.dataclass(frozen=True)
class ScanParams:
    """What is common to the parameters of ``scan`` of all versions."""

    num_consts: int
    num_carry: int
    length: int
    reverse: bool
    unroll: Any


def scan_params(eqn: Any) -> ScanParams:
    """A scan's layout. From jax 0.12 on it is given by two flat trees instead of two counts."""
    params = eqn.params
    if "num_carry" in params:
        counts = params["num_consts"], params["num_carry"]
    else:
        consts, carry, _ = params["ft_in"].unpack()
        counts = len(consts), len(carry)
    return ScanParams(*counts, params["length"], params["reverse"], params["unroll"])


def name_stack(eqn: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the scopes and of the transformations on an equation's name stack.

    The stack is typed, so that a user's scope called "transpose(...)" is not a transposition. It is
    private: there is no public way to read it but as text.
    """
    stack = eqn.source_info.name_stack.stack
    if eqn.primitive is jex_primitives.remat_p:
        stack = _without_repetition(stack)
    scopes = tuple(e.name for e in stack if isinstance(e, source_info_util.Scope))
    transforms = tuple(e.name for e in stack if isinstance(e, source_info_util.Transform))
    return scopes, transforms


def _without_repetition(stack: Any) -> Any:
    """A stack whose end is not there twice, as JAX writes it on the transpose of a remat."""
    for n in range(len(stack) // 2, 0, -1):
        if stack[-n:] == stack[-2 * n : -n]:
            return stack[:-n]
    return stack


@contextlib.contextmanager
def source_of(eqn: Any) -> Generator[None]:
    """A context in which new equations get the name stack and the source location of ``eqn``."""
    traceback = eqn.source_info.traceback
    stack = source_info_util.current_name_stack() + eqn.source_info.name_stack
    with source_info_util.user_context(traceback, name_stack=stack), eqn.ctx.manager:
        yield


def location(eqn: Any) -> str:
    """file:line of the user's code that made an equation; there is no public accessor."""
    frame = source_info_util.user_frame(eqn.source_info.traceback)
    return f"{frame.file_name}:{frame.start_line}" if frame else ""


def is_kernel(eqn: Any) -> bool:
    """Whether an equation is a kernel or a foreign call that may multiply matrices inside."""
    name = eqn.primitive.name
    return name in ("pallas_call", "ffi_call", "custom_call", "mosaic_call") or "cudnn" in name


def axis_names(eqn: Any) -> frozenset[str]:
    """The mesh axes that a collective is over."""
    given = eqn.params.get("axes", eqn.params.get("axis_name", ()))
    return frozenset(given if isinstance(given, (tuple, list)) else (given,))


def unchecked_axes(eqn: Any) -> list[frozenset[str]] | None:
    """For each operand of a ``shard_map``, the axes that shard it; None if types tell."""
    if eqn.params["check_vma"]:
        return None
    return [
        frozenset(
            name
            for entry in spec
            if entry is not None
            for name in (entry if isinstance(entry, tuple) else (entry,))
        )
        for spec in eqn.params["in_specs"]
    ]


def is_float(dtype: Any) -> bool:
    """Whether a dtype is a real floating-point type (not an extended one, as keys are)."""
    return bool(jnp.issubdtype(dtype, jnp.floating))


def dce(closed: Any) -> Any:
    """A closed jaxpr without dead code; inputs and outputs stay as they are. Private in JAX."""
    jaxpr, consts = open_jaxpr(closed)
    live, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    return live if isinstance(live, jex_core.ClosedJaxpr) else jex_core.ClosedJaxpr(live, consts)


def bind_call(eqn: Any, fun: Any, codes: Any, values: Sequence[Any], **changed: Any) -> Any:
    """``fun(codes, *values) -> (outputs, made)`` by the jit or checkpoint that ``eqn`` is.

    Bound anew with its own parameters: no public function gives all of them back, such as that a
    checkpoint has been differentiated already, or the layouts of a jit.
    """
    given, tree = jax.tree.flatten(codes)

    def flat(*leaves: Any) -> Any:
        return fun(jax.tree.unflatten(tree, leaves[: len(given)]), *leaves[len(given) :])

    closed, out = jax.make_jaxpr(flat, return_shape=True)(*given, *values)
    jaxpr, consts = open_jaxpr(closed)
    jaxpr = partial_eval.convert_constvars_jaxpr(jaxpr)
    params: dict[str, Any] = {**eqn.params, **changed, "jaxpr": jaxpr}
    if eqn.primitive is jex_primitives.jit_p:
        params["jaxpr"] = jex_core.ClosedJaxpr(jaxpr, ())
        entering, made = len(consts) + len(given), len(jaxpr.outvars) - len(eqn.outvars)
        for name, fill in (("in_shardings", UNSPECIFIED), ("in_layouts", None)):
            params[name] = (fill,) * entering + params[name]
        for name, fill in (("out_shardings", UNSPECIFIED), ("out_layouts", None)):
            params[name] += (fill,) * made
        params["donated_invars"] = (False,) * entering + params["donated_invars"]
    outs = eqn.primitive.bind(*consts, *given, *values, **params)
    return jax.tree.unflatten(jax.tree.structure(out), outs)


def bind_shard_map(eqn: Any, fun: Any, scalars: Any, values: Sequence[Any]) -> Any:
    """``fun(scalars, *values)`` under the ``shard_map`` of ``eqn``.

    The scalars are replicated, and so is what ``fun`` returns beside the outputs of ``eqn``.
    """
    params = eqn.params
    replicated = jax.sharding.PartitionSpec()
    return jax.shard_map(
        fun,
        mesh=params["mesh"],
        in_specs=(replicated, *params["in_specs"]),
        out_specs=(list(params["out_specs"]), replicated),
        axis_names=frozenset(params["newly_manual_axes"]),
        check_vma=params["check_vma"],
    )(scalars, *values)


# ------------------------------------------------------------------------------ the running program


def inside_transformation() -> bool:
    """Whether a jit, grad, vmap, ... is being applied to what calls this. Private in JAX."""
    return not _core.trace_state_clean()


def jit_is_disabled() -> bool:
    """Whether ``jax.disable_jit`` is in effect: jitted functions see arrays. Untyped in JAX."""
    return bool(getattr(jax.config, "jax_disable_jit"))  # noqa: B009


_LIBRARIES = tuple(os.path.dirname(os.path.abspath(f)) + os.sep for f in (jax.__file__, __file__))


def user_stacklevel() -> int:
    """``stacklevel`` of a warning that the caller gives, for it to point at the user's own line."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame, level = frame.f_back, level + 1
    return level
