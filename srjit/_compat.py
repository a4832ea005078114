"""Everything that differs between JAX versions, and every private import, each with its reason."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Sequence
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
from jax._src import core as _core  # whether a transformation is under way, and which loops
from jax._src import dispatch as _dispatch  # see lowers_for_devices
from jax._src import sharding_impls as _sharding_impls  # see lowered_without_devices, _replicated
from jax._src import source_info_util  # typed name stacks and frames: see name_stack
from jax._src import stages as _stages  # see with_more_arguments
from jax._src import tree_util as _tree_util  # see differences
from jax._src import util as _util  # see lowered_without_devices
from jax._src.export import _export  # see export_lowered
from jax._src.interpreters import mlir as _mlir  # see lowered_without_devices
from jax._src.interpreters import partial_eval  # dead-code elimination: see dce
from jax._src.interpreters import pxla as _pxla  # see with_more_arguments
from jax._src.lax import lax as _lax  # a primitive that is not exported
from jax._src.lib import pytree as _pytree  # trees of the registry that lowered programs use
from jax._src.named_sharding import UNSPECIFIED  # what jit says of a sharding nobody gave
from jax.extend import core as jex_core
from jax.extend.core import primitives as jex_primitives

from srjit import _stack

ragged_dot_general_p = _lax.ragged_dot_general_p


def varying_axes(x: jax.Array) -> tuple[str, ...]:
    """Mesh axes of an enclosing ``shard_map`` over which ``x`` differs, by its type."""
    return tuple(sorted(typed_axes(jax.typeof(x))))


def typed_axes(aval: Any) -> frozenset[str]:
    """Mesh axes of an enclosing ``shard_map`` over which a value differs, if its type says so."""
    return frozenset(getattr(getattr(aval, "manual_axis_type", None), "varying", ()))


def current_scopes() -> tuple[str, ...]:
    """Names of the scopes around what is being traced. Private in JAX, as name stacks are."""
    stack = source_info_util.current_name_stack().stack
    return tuple(e.name for e in stack if isinstance(e, source_info_util.Scope))


def result_types(fun: Any, *avals: Any) -> Sequence[Any]:
    """The avals of ``fun``'s results, with their sharding and the mesh axes they vary over."""

    def struct(aval: Any) -> jax.ShapeDtypeStruct:
        sharding = None if aval.sharding.mesh.empty else aval.sharding  # of an explicit mesh
        manual = aval.manual_axis_type
        varying: dict[str, Any] = {} if manual.empty else {"manual_axis_type": manual}
        return jax.ShapeDtypeStruct(aval.shape, aval.dtype, sharding=sharding, **varying)

    return jax.make_jaxpr(fun)(*map(struct, avals)).out_avals


def explicit_sharding(aval: Any) -> Any:
    """The sharding of an aval under a mesh whose axes are all explicit, else None."""
    sharding = getattr(aval, "sharding", None)
    mesh = getattr(sharding, "mesh", None)
    explicit = mesh is not None and not mesh.empty and mesh.are_all_axes_explicit
    return sharding if explicit else None


# ------------------------------------------------------------------------------------------- jaxprs


def open_jaxpr(closed: Any) -> tuple[Any, Sequence[Any]]:
    """A jaxpr and its constants. From jax 0.11 on a closed jaxpr may be the jaxpr itself."""
    return getattr(closed, "jaxpr", closed), getattr(closed, "consts", ())


def scan_params(eqn: Any) -> tuple[int, int]:
    """The numbers of constants and carried values of a scan. From jax 0.12 two flat trees tell."""
    params = eqn.params
    if "num_carry" in params:
        return params["num_consts"], params["num_carry"]
    consts, carry, _ = params["ft_in"].unpack()
    return len(consts), len(carry)


def name_stack(eqn: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of the scopes and of the transformations on an equation's name stack.

    Publicly it is only text, where a user's scope may be called "transpose(...)".
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


def types_of_algorithm(algorithm: Any, lhs: Any, rhs: Any, out: Any) -> Sequence[Any]:
    """The dtypes that JAX's lowering casts the operands and the result of a product to."""
    return _lax.get_algorithm_compute_types(algorithm, lhs, rhs, out)


def is_float(dtype: Any) -> bool:
    """True if a dtype is a real floating-point type (not an extended one, as keys are)."""
    return bool(jnp.issubdtype(dtype, jnp.floating))


def dce(closed: Any, outputs: Sequence[bool] | None = None) -> Any:
    """A closed jaxpr without dead code, for all its outputs or those chosen; inputs stay."""
    return _without_dead(closed, outputs, True)[0]


def without_dead_inputs(closed: Any) -> tuple[Any, list[int]]:
    """A closed jaxpr without dead code and dead inputs, and which inputs are left."""
    live, used = _without_dead(closed, None, False)
    return live, [i for i, is_used in enumerate(used) if is_used]


def _without_dead(
    closed: Any, outputs: Sequence[bool] | None, instantiate: bool
) -> tuple[Any, Sequence[bool]]:
    jaxpr, consts = open_jaxpr(closed)
    wanted = [True] * len(jaxpr.outvars) if outputs is None else list(outputs)
    live, used = partial_eval.dce_jaxpr(jaxpr, wanted, instantiate=instantiate)
    is_closed = isinstance(live, jex_core.ClosedJaxpr)
    return live if is_closed else jex_core.ClosedJaxpr(live, consts), used


def has_dce_rule(primitive: Any) -> bool:
    """True if JAX knows how to find dead code in what a primitive calls; private in JAX."""
    return primitive in partial_eval.dce_rules


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
    if (primitive := eqn.params.get("_prim")) is not None:  # by JAX_REMAT3
        params = {**primitive.params, "jaxpr": jex_core.ClosedJaxpr(jaxpr, ())}
        if isinstance(params.get("prevent_cse"), tuple):
            params["prevent_cse"] = (False,) * (len(consts) + len(given)) + params["prevent_cse"]
        outs = type(primitive)(**params)(*consts, *given, *values)
        return jax.tree.unflatten(jax.tree.structure(out), outs)
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


def is_plain_jit(eqn: Any) -> bool:
    """True if a jit says nothing of shardings, layouts and donation."""
    names = ("in_shardings", "out_shardings", "in_layouts", "out_layouts", "donated_invars")
    return all(x is UNSPECIFIED or not x for name in names for x in eqn.params[name])


def runs_alone(context: Any) -> bool:
    """True if what a ``LoweringRuleContext`` lowers runs on one device, or on each by itself."""
    axes = context.module_context.axis_context
    mesh = getattr(axes, "mesh", None)
    if mesh is None:
        return getattr(axes, "num_devices", 0) == 1
    manual = set(axes.manual_axes) | set(getattr(mesh, "manual_axes", ()))
    return bool(axes.manual_axes) and manual == set(mesh.axis_names)


def lowers_for_devices(primitive: Any) -> None:
    """Lets lowering rules of a primitive know the devices, as ``jax.custom_partitioning`` wants."""
    _dispatch.prim_requires_devices_during_lowering.add(primitive)


# ------------------------------------------------------------------------------ the running program


def inside_transformation() -> bool:
    """True if a jit, grad, vmap, ... is being applied to what calls this. Private in JAX."""
    return not _core.trace_state_clean()


def loop_around(value: Any) -> bool:
    """True if a value is made outside of a loop whose body is being traced. Private in JAX."""
    trace, made = _core.trace_ctx.trace, jax.tree.leaves(value)
    while trace is not None:
        # The arguments of a jit in between are what it was called with.
        made = [_stack.passed(x) if getattr(x, "_trace", 0) is trace else x for x in made]
        if any(x is None for x in made):
            return False
        info = getattr(getattr(trace, "frame", None), "debug_info", None)
        if getattr(info, "traced_for", "") in ("scan", "fori_loop", "while_body"):
            return True
        trace = getattr(trace, "parent_trace", None)
    return False


def jit_is_disabled() -> bool:
    """True if ``jax.disable_jit`` is in effect: jitted functions see arrays. Untyped in JAX."""
    return bool(getattr(jax.config, "jax_disable_jit"))  # noqa: B009


def transfers_are_guarded() -> bool:
    """True if ``jax.transfer_guard`` forbids, or logs, sending numbers unasked. Untyped in JAX."""
    guard = getattr(jax.config, "jax_transfer_guard_host_to_device")  # noqa: B009
    return guard not in (None, "allow")


# --------------------------------------------------------------------------------- lowered programs


def module_of(lowered: Any) -> Any:
    """The module of a ``jax.stages.Lowered`` as JAX holds it: its cache too, so never change it."""
    return lowered._lowering.stablehlo()


def name_of_module(lowered: Any) -> str:
    """The name of a lowered program."""
    name = str(lowered._lowering._name)
    return name[len("jit(") : -1] if name.startswith("jit(") else name


@_util.cache(max_size=1024)  # whose keys have JAX's configuration and its mesh
def lowered_without_devices(fun: Any, signature: Any, platform: str) -> Any:
    """The text of the module of a function for a platform, for one device that need not exist.

    Everything public asks for the default device, and so starts whatever accelerator there is.
    """
    traced = jax.jit(fun, keep_unused=True).trace(*(jax.ShapeDtypeStruct(*s) for s in signature))
    nowhere: Any = _NoDevice()
    with jax.default_device(nowhere):
        return _mlir.build_mlir_module_helper(
            traced.jaxpr,
            name=f"jit_{traced.fun_name}",
            platforms=(platform,),
            backend=nowhere,
            axis_context=_sharding_impls.ShardingContext(1, (nowhere,)),
        ).operation.get_asm(enable_debug_info=True)


class _NoDevice:
    """A device, and its backend, of which kernels ask how old it is and of what kind."""

    platform = runtime_type = device_kind = ""


def with_more_arguments(
    lowered: Any, module: Any, arguments: dict[str, Any], results: Sequence[Any]
) -> Any:
    """A ``jax.stages.Lowered`` of ``module``, which is that of ``lowered`` after a rewriting.

    Called as ``compiled(args, kwargs, arguments)``, it returns ``(out, results)``: JAX has no
    public way to run a module with the callbacks, effects and shardings of another one.

    Args:
      lowered: of the program as it was.
      module: with ``arguments`` and ``results`` more than ``lowered`` has, all of them last.
      arguments, results: avals, those of the arguments by what messages call them.

    Raises:
      NotImplementedError: JAX passes what the program mutates behind its last argument.
    """
    old = lowered._lowering
    types: list[Any] = [getattr(lowered, name, None) for name in ("_in_types", "_out_types")]
    if all(types) and any(t.is_high for _, avals in types for t in avals):
        raise NotImplementedError("arguments or results of high-level (hijax) types")
    given: dict[str, Any] = dict(old.compile_args)
    mutated = given.get("mut")
    if mutated is not None and mutated.in_mut and arguments:
        raise NotImplementedError(
            "the program mutates arrays that it closes over (jax.new_ref): make them arguments"
        )
    replicated = _replicated(old, given)
    kept = len(old.const_args) + lowered.in_tree.num_leaves
    avals = list(arguments.values())
    for way, more in (("in", avals), ("out", results)):
        given[f"global_{way}_avals"] = (*given[f"global_{way}_avals"], *more)
        given[f"{way}_shardings"] = (*given[f"{way}_shardings"], *[replicated] * len(more))
        given[f"{way}_layouts"] = (*given[f"{way}_layouts"], *[None] * len(more))
    given["kept_var_idx"] = {*given["kept_var_idx"], *range(kept, kept + len(arguments))}
    if mutated is not None:
        given["mut"] = mutated._replace(out_mut=[*mutated.out_mut, *[None] * len(results)])
    info = given.get("all_args_info")
    if info is not None:
        names = info.debug_info.arg_names
        names = None if names is None else (*names, *arguments)
        given["all_args_info"] = info._replace(
            in_avals=(*info.in_avals, *avals),
            debug_info=info.debug_info._replace(arg_names=names),
        )
    computation = _pxla.MeshComputation(
        old._name,
        module,
        old.const_args,
        (*old._donated_invars, *[False] * len(arguments)),
        old._platforms,
        old._compiler_options_kvs,
        old._device_list,
        **given,
    )
    more = [_stages.ArgInfo(aval, False) for aval in avals]
    args, kwargs = lowered.args_info
    registry = _tree_util.tracing_registry  # that of lowered.out_tree; the public one is another
    trees = [lowered.out_tree, registry.flatten([0] * len(results))[1]]
    out_tree = _pytree.treedef_tuple(registry, trees)
    return _stages.Lowered(computation, ((args, kwargs, more), {}), out_tree)


def placed_by_xla(lowered: Any) -> frozenset[int]:
    """Numbers of the flat arguments of a ``jax.stages.Lowered`` that XLA chooses shardings of."""
    lowering = lowered._lowering
    shardings = lowering.compile_args["in_shardings"]
    kept = sorted(lowering.compile_args["kept_var_idx"])
    free = [i for i, s in zip(kept, shardings, strict=True) if s is UNSPECIFIED]
    return frozenset(i - len(lowering.const_args) for i in free)


def _replicated(lowering: Any, given: dict[str, Any]) -> Any:
    """The sharding of what every device of a lowered program has a copy of."""
    devices = lowering._device_list
    if devices is None or len(devices) == 1:
        return UNSPECIFIED
    for sharding in (*given["in_shardings"], *given["out_shardings"]):
        if isinstance(sharding, jax.sharding.NamedSharding):
            return jax.sharding.NamedSharding(sharding.mesh, jax.sharding.PartitionSpec())
    # No mesh of ours: JAX would say in its axes how XLA has sharded the other arguments.
    return _sharding_impls.GSPMDSharding.get_replicated(devices)


def lowered_module(
    module: Any,
    name: str,
    arguments: Sequence[Any],
    results: Sequence[Any],
    partitions: int,
    *,
    kept: Sequence[int] | None = None,
    trees: tuple[Any, Any] | None = None,
) -> Any:
    """A ``jax.stages.Lowered`` of a module that JAX has not lowered here.

    Shardings are those of the module's own attributes: XLA says after compilation what they are.

    Args:
      module: of all devices.
      name: for messages.
      arguments, results: avals, flat.
      partitions: for how many devices it is.
      kept: which arguments the module takes; None: all of them.
      trees: the structures of ``(args, kwargs)`` and of the result; None: an array a value.

    Raises:
      ValueError: there are not as many devices as the module has partitions.
    """
    devices = jax.devices()
    if len(devices) < partitions:
        raise ValueError(
            f"{name} is for {partitions} devices (mhlo.num_partitions), there are {len(devices)}"
        )
    lowered: Any = jax.jit(lambda: None).lower()
    empty = lowered._lowering
    kept = range(len(arguments)) if kept is None else kept
    names = tuple(f"args[{i}]" for i in range(len(arguments)))
    info = _core.DebugInfo("srjit.rejit", name, names, None)
    compiling: dict[str, Any] = {
        **empty.compile_args,
        "num_devices": partitions,
        "committed": partitions > 1,
        "kept_var_idx": set(kept),
        "all_args_info": _pxla.AllArgsInfo(tuple(arguments), info),
    }
    for way, avals in (("in", [arguments[i] for i in kept]), ("out", results)):
        compiling[f"global_{way}_avals"] = tuple(avals)
        compiling[f"{way}_shardings"] = (UNSPECIFIED,) * len(avals)
        compiling[f"{way}_layouts"] = (None,) * len(avals)
    donated, platforms = (False,) * len(kept), empty._platforms
    computation = _pxla.MeshComputation(
        name, module, [], donated, platforms, (), tuple(devices[:partitions]), **compiling
    )
    infos: Any = (tuple(_stages.ArgInfo(aval, False) for aval in arguments), {})
    registry = _tree_util.tracing_registry
    if trees is not None:
        infos = jax.tree.unflatten(trees[0], infos[0])
        out_tree = registry.flatten(jax.tree.unflatten(trees[1], [0] * len(results)))[1]
    else:
        out_tree = registry.flatten(0 if len(results) == 1 else (0,) * len(results))[1]
    return _stages.Lowered(computation, infos, out_tree)


def differences(tree: Any, other: Any) -> list[str]:
    """The differences of two pytree structures of ``(args, kwargs)``. Private in JAX."""
    return [
        f"{('args', 'kwargs')[path[0].idx] + jax.tree_util.keystr(tuple(path[1:])) if path else ''}"
        f" was {was}, is {now}: {why}"
        for path, was, now, why in _tree_util.equality_errors_pytreedef(tree, other)
    ]


def export_lowered(lowered: Any, name: str, custom_calls: Sequence[str]) -> Any:
    """Exports a lowered program; publicly ``jax.export`` takes functions only.

    Args:
      lowered: a ``jax.stages.Lowered``.
      name: for messages.
      custom_calls: what may be called that JAX does not promise to keep as it is.
    """
    checks = [jax.export.DisabledSafetyCheck.custom_call(target) for target in custom_calls]
    no_jaxpr: Any = None
    exported = _export._export_lowered(lowered, no_jaxpr, name, checks)  # pyright: ignore[reportPrivateUsage]
    return dataclasses.replace(exported, _get_vjp=None)
