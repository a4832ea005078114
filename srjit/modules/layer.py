"""``layer="stablehlo"``: a traced function, rewritten as the module that JAX lowers it to.

A primitive holds the function. Its lowering has JAX emit the function into the module at hand,
where callbacks, effects and shardings belong, takes what was emitted out into a module of its own,
has passes rewrite that, and puts it back.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer
from jax.extend import core as jex_core
from jax.interpreters import ad, batching, mlir

from srjit import _compat
from srjit._mlir import func, ir, passmanager
from srjit.calling.keys import MissingKeyError
from srjit.modules.interface import Interface
from srjit.numerics.shards import untyped_axes
from srjit.passes import Pipeline
from srjit.passes.driver import registry
from srjit.passes.driver.running import Seen, nothing_seen
from srjit.passes.mlir.serialization import copy_of
from srjit.products import kinds
from srjit.program import left_alone
from srjit.program.exchange import equation
from srjit.program.high_level import without_high_level
from srjit.program.stablehlo import operations
from srjit.recipes import Recipe
from srjit.targets.kernel_call import without_kernels
from srjit.targets.target import Target


@dataclasses.dataclass(frozen=True)
class Rewriting:
    """The rewriting of one traced function.

    Attributes:
      name: of the function.
      recipe: what the passes insert.
      target: what they legalize for.
      mode, rng: names.
      parameters: which arguments are parameters.
      captured: how many of them, from the first on, the function captures.
      has_key: whether a key is given.
      states: names of the histories of delayed scales, in order.
      seen: sees the module after every pass.
      is_looked_at: whether the module is only looked at, and never runs.
    """

    name: str
    recipe: Recipe
    target: Target
    mode: str
    rng: str
    parameters: tuple[bool, ...]
    has_key: bool
    states: tuple[str, ...]
    seen: Seen | None
    captured: int = 0
    is_looked_at: bool = False

    def run(self, module: Any, first: int) -> None:
        """Rewrites a module whose arguments from ``first`` on are the function's.

        Raises:
          PipelineError: a pass cannot do what it was asked to.
        """
        chosen = tuple(str(first + i) for i, p in enumerate(self.parameters) if p)
        held = tuple(str(first + i) for i in range(self.captured) if not self.parameters[i])
        options: dict[str, dict[str, Any]] = {
            "srjit-eliminate-dead-code": {},
            "srjit-annotate-matmuls": {"params": chosen or ("none",), "constants": held},
            "srjit-insert-quantize": {"recipe": self.recipe, "mode": self.mode, "rng": self.rng},
            "srjit-share-quantized": {},
            "srjit-legalize": {"target": self.target},
        }
        pipeline = Pipeline(*(registry.find(name)(**given) for name, given in options.items()))
        pipeline.run(module, sink=_said_already, seen=self.seen or nothing_seen)


def _said_already(diagnostic: Any) -> None:
    """Hears the warnings of passes: of what they warn, the decorator has warned."""


def call(
    closed: Any,
    rewriting: Rewriting,
    words: Sequence[jax.Array] | None,
    states: dict[str, jax.Array],
    leaves: Sequence[Any],
) -> tuple[list[Any], dict[str, jax.Array]]:
    """The outputs of a rewritten program, and its new histories.

    Raises:
      NotImplementedError: noise is drawn inside of somebody else's ``shard_map``.
    """
    axes = untyped_axes().union(*map(_compat.varying_axes, leaves))
    if words is not None and axes:
        # A module does not say which of its tensors differ from shard to shard, and shards must
        # neither share noise nor differ in what they hold copies of.
        raise NotImplementedError(
            f"{rewriting.name} draws noise inside of a shard_map or pmap over "
            f"{', '.join(sorted(axes))}, where layer='stablehlo' cannot tell what is sharded: "
            "apply shard_map inside of the decorated function, or use layer='jaxpr'"
        )
    closed, captured = _without_traced_constants(without_high_level(closed))
    # A captured tensor is a weight, unless there are parameters to be weights.
    weights = not any(rewriting.parameters)
    more = [weights and x.ndim >= 2 and _compat.is_float(x.dtype) for x in captured]
    rewriting = dataclasses.replace(
        rewriting, parameters=(*more, *rewriting.parameters), captured=len(captured)
    )
    key = [jnp.stack(words)] if words is not None else []
    histories = [states[name] for name in rewriting.states]
    outs = hlo_call_p.bind(
        *key, *histories, *captured, *leaves, call_jaxpr=closed, rewriting=rewriting
    )
    count = len(outs) - len(histories)
    return outs[:count], dict(zip(rewriting.states, outs[count:], strict=True))


def _without_traced_constants(closed: Any) -> tuple[Any, list[Any]]:
    """A closed jaxpr that takes first what it had captured of an enclosing transformation."""
    jaxpr, consts = _compat.open_jaxpr(closed)
    traced = [i for i, const in enumerate(consts) if isinstance(const, Tracer)]
    if not traced:
        return closed, []

    def fun(captured: Sequence[Any], *args: Any) -> Any:
        values = list(consts)
        for i, value in zip(traced, captured, strict=True):
            values[i] = value
        return jex_core.jaxpr_as_fun(jex_core.ClosedJaxpr(jaxpr, values))(*args)

    captured = [consts[i] for i in traced]
    return jax.make_jaxpr(fun)(captured, *closed.in_avals), captured


hlo_call_p = jex_core.Primitive("srjit_hlo_call")
hlo_call_p.multiple_results = True


@hlo_call_p.def_effectful_abstract_eval
def _type(*avals: Any, call_jaxpr: Any, rewriting: Rewriting) -> Any:
    histories = avals[rewriting.has_key :][: len(rewriting.states)]
    return [*call_jaxpr.out_avals, *histories], call_jaxpr.effects


@hlo_call_p.def_impl
def _evaluate(*args: Any, **params: Any) -> Any:
    with jax.disable_jit(False):
        return jax.jit(lambda *args: hlo_call_p.bind(*args, **params))(*args)


def _refusing(what: str) -> Callable[..., Any]:
    def rule(*args: Any, rewriting: Rewriting, **params: Any) -> Any:
        raise NotImplementedError(
            f"{rewriting.name} is rewritten after lowering (layer='stablehlo'), where JAX can no "
            f"longer {what}: {what} inside of the decorated function, or use layer='jaxpr'"
        )

    return rule


ad.primitive_jvps[hlo_call_p] = _refusing("differentiate it")
batching.primitive_batchers[hlo_call_p] = _refusing("batch it with vmap")


# --------------------------------------------------------------------------------------- lowering


def _lower(ctx: Any, *args: Any, call_jaxpr: Any, rewriting: Rewriting) -> Any:
    given = rewriting.has_key + len(rewriting.states)
    key, states = args[: rewriting.has_key], args[rewriting.has_key : given]
    module, table = ctx.module_context.module, ctx.module_context.symbol_table
    before = set(operations.functions(module.operation))
    inner = ctx.replace(
        # What the module has already stays as it is: with caches of its own, all is emitted anew.
        module_context=ctx.module_context.replace(
            lowering_cache={},
            cached_primitive_lowerings={},
            lowering_parameters=_keeping_apart(
                ctx.module_context.lowering_parameters, call_jaxpr, rewriting.is_looked_at
            ),
        ),
        avals_in=ctx.avals_in[given:],
        avals_out=ctx.avals_out[: len(ctx.avals_out) - len(states)],
    )
    outs = mlir.core_call_lowering(inner, *args[given:], name="main", call_jaxpr=call_jaxpr)
    if inner.tokens_out is not None:
        ctx.set_tokens_out(inner.tokens_out)
    old = _last_call(before)
    entry = ir.FlatSymbolRefAttr(old.attributes["callee"]).value
    emitted = {n: op for n, op in operations.functions(module.operation).items() if n not in before}
    taken = _module_of(emitted, entry, module, rewriting.name)
    for op in emitted.values():
        table.erase(op)

    rewritten = copy_of(taken)
    # For another platform than the target's, a kernel of the target would not compile.
    compiler = rewriting.target.compiler
    is_for_it = compiler is not None and tuple(ctx.module_context.platforms) == (compiler.platform,)
    with contextlib.nullcontext() if is_for_it else without_kernels():
        rewriting.run(rewritten, len(old.operands) - len(rewriting.parameters))
    interface = Interface.of(rewritten, len(old.operands), len(old.results))
    if interface.key != "none" and not key:
        raise MissingKeyError.of(rewriting.name)
    if set(interface.states) != set(rewriting.states):
        raise ValueError(
            f"the passes gave {rewriting.name} other delayed scales than its plan has: "
            f"{list(interface.states)} for {list(rewriting.states)}; use layer='jaxpr'"
        )
    back = copy_of(rewritten, module.context)
    kinds = operations.types_of(operations.main_of(back.operation))[1]
    name = mlir.merge_mlir_modules(module, f"srjit_{rewriting.name}", back, dst_symtab=table)
    by_name = dict(zip(rewriting.states, states, strict=True))
    operands = [*old.operands, *(key if interface.key != "none" else ())]
    operands += [by_name[state] for state in interface.states]
    with ir.InsertionPoint(old), old.location:
        new = func.CallOp(kinds, ir.FlatSymbolRefAttr.get(name), operands)
    results = list(new.results)
    count = len(old.results)
    renamed = dict(zip(old.results, results[:count], strict=True))
    outs = [renamed.get(out, out) for out in outs]
    for was, now in renamed.items():
        was.replace_all_uses_with(now)
    if ctx.tokens_out is not None:
        _rename_tokens(ctx, renamed)
    old.erase()
    histories = dict(zip(interface.states, results[count:], strict=True))
    return [*outs, *(histories[name] for name in rewriting.states)]


mlir.register_lowering(hlo_call_p, _lower, cacheable=False)


def _rename_tokens(ctx: Any, renamed: dict[Any, Any]) -> None:
    """The tokens of ordered effects, that the call which is to be erased returned."""
    tokens = {
        effect: renamed.get(ctx.tokens_out.get(effect), ctx.tokens_out.get(effect))
        for effect in ctx.tokens_out.effects()
    }
    ctx.tokens_out = None
    ctx.set_tokens_out(mlir.TokenSet(tokens))


def _last_call(before: set[str]) -> Any:
    point: Any = ir.InsertionPoint.current
    calls = [op.operation for op in point.block.operations if op.operation.name == "func.call"]
    for op in reversed(calls):
        if ir.FlatSymbolRefAttr(op.attributes["callee"]).value not in before:
            return op
    raise AssertionError("JAX emitted no call")


def _module_of(functions: dict[str, Any], entry: str, like: Any, name: str) -> Any:
    """Copies of functions in a module of their own, where ``entry`` is ``@main``."""
    taken = ir.Module.create(ir.Location.unknown(like.context))
    for attribute in like.operation.attributes:
        given = getattr(attribute, "name", attribute)  # newer bindings give names only
        taken.operation.attributes[given] = like.operation.attributes[given]
    taken.operation.attributes["sym_name"] = ir.StringAttr.get(name)
    end = ir.InsertionPoint(taken.body)
    for op in like.body.operations:
        if op.operation.name != "func.func":  # a mesh, which collectives of newer JAXes refer to
            op.operation.clone(ip=end)
    copies = {n: op.clone(ip=end) for n, op in functions.items()}
    table = ir.SymbolTable(taken.operation)
    main = copies[entry]
    if entry != "main":
        if "main" in copies:
            raise AssertionError("JAX emitted another function called @main")
        table.set_symbol_name(main, "main")
    main.attributes["sym_visibility"] = ir.StringAttr.get("public")
    # As JAX does at the end of its own lowering: meshes become symbols of the module.
    passmanager.PassManager.parse("builtin.module(sdy-lift-inlined-meshes)").run(taken.operation)
    return taken


# ------------------------------------------------------------------------------ kept composites


def _keeping_apart(parameters: Any, closed: Any, is_looked_at: bool) -> Any:
    """Lowering parameters with which every product, and what is left alone, stays one operation.

    A CPU has JAX lower a ragged product to one product a group, and an interpreted kernel to plain
    operations, which nobody could tell from those that somebody wrote.
    """
    rules: dict[Any, Callable[..., Any]] = {
        kind.rules.primitive: functools.partial(_lower_product, kind)
        for kind in kinds.KINDS.values()
        if kind.rules.attributes is not None
    }
    for eqn in left_alone.found(_compat.open_jaxpr(closed)[0]):
        rules[eqn.primitive] = functools.partial(_lower_alone, eqn.primitive, is_looked_at)
    given = parameters.override_lowering_rules or ()
    return dataclasses.replace(parameters, override_lowering_rules=(*given, *rules.items()))


def _lower_product(kind: kinds.Kind, ctx: Any, *args: Any, **params: Any) -> Any:
    """A composite whose decomposition is JAX's own lowering of a product."""
    rules = kind.rules
    assert rules.attributes is not None
    product = functools.partial(_bind, rules.primitive, params)
    name, attributes = kind.operations[0], rules.attributes(params)
    return _lower_kept(ctx, rules.primitive, product, args, name, attributes)


def _lower_alone(primitive: Any, is_looked_at: bool, ctx: Any, *args: Any, **params: Any) -> Any:
    """A composite whose decomposition is JAX's own lowering of what is left alone.

    One without numbers if JAX has no such lowering, and the module never runs.
    """
    run: Callable[..., Any] = functools.partial(_bind, primitive, params)
    structs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in ctx.avals_in]
    eqn = equation(primitive, params, ctx.avals_in, ctx.avals_out)
    described = left_alone.described(eqn)
    if not described["why"] or (ctx.tokens_in and ctx.tokens_in.effects()):
        return mlir.lower_fun(run)(_without_rule(ctx, primitive), *args)
    if is_looked_at:
        platforms = ctx.module_context.platforms
        try:
            jax.jit(run).trace(*structs).lower(lowering_platforms=platforms)
        except NotImplementedError:
            run = lambda *_: [jnp.zeros(a.shape, a.dtype) for a in ctx.avals_out]  # noqa: E731
    return _lower_kept(ctx, primitive, run, args, left_alone.COMPOSITE, described)


def _bind(primitive: Any, params: dict[str, Any], *operands: Any) -> Any:
    out = primitive.bind(*operands, **primitive.get_bind_params(params))
    return out if primitive.multiple_results else [out]


def _lower_kept(
    ctx: Any,
    primitive: Any,
    run: Callable[..., Any],
    args: Sequence[Any],
    name: str,
    attributes: dict[str, Any],
) -> Any:
    """A composite of a function that binds a primitive, which itself is lowered as JAX does."""

    def kept(*operands: Any) -> Any:
        return jax.lax.composite(lambda *args, **_: run(*args), name)(*operands, **attributes)

    return mlir.lower_fun(kept)(_without_rule(ctx, primitive), *args)


def _without_rule(ctx: Any, primitive: Any) -> Any:
    """A lowering context in which JAX lowers a primitive as it does everywhere."""
    parameters = ctx.module_context.lowering_parameters
    others = tuple(r for r in parameters.override_lowering_rules if r[0] is not primitive)
    return ctx.replace(
        module_context=ctx.module_context.replace(
            lowering_cache={},
            cached_primitive_lowerings={},
            lowering_parameters=dataclasses.replace(
                parameters, override_lowering_rules=others or None
            ),
        )
    )
