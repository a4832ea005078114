"""``srjit``: what ``jax.jit`` is, with the matrix multiplications of the function quantized."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import types
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import jax
import numpy as np

from srjit import _compat, recipes, targets
from srjit.diagnostics.dump import Dump
from srjit.jaxprs.planner import ProgramPlan, Settings, make_plan
from srjit.jaxprs.provenance import DATA, PARAMETER
from srjit.jaxprs.rewrite import evaluate
from srjit.jaxprs.roles import KEEP_SCOPE, role_scope
from srjit.numerics.formats import unknown_name
from srjit.numerics.random_bits import Key, Rng, as_key, int_words, mix
from srjit.plan import Report
from srjit.recipes import Recipe, Role
from srjit.targets import Target

Mode = Literal["train", "inference"]
_MISSING_KEY = (
    "{name} rounds stochastically and needs a key: call it with sr_key=, a typed PRNG key such as "
    "jax.random.fold_in(key, step) or an integer step, or make it with srjit(..., key="
    "jax.random.key(0)); at inference use srjit(..., mode='inference')"
)


class UnsupportedSiteError(ValueError):
    """``strict=True``, and a site that the recipe asked for could not be quantized."""


@dataclasses.dataclass(frozen=True)
class _Options:
    recipe: Recipe
    target: Target
    mode: Mode
    params_argnums: tuple[int, ...]
    rng: Rng
    strict: bool
    dump: Dump

    @classmethod
    def of(
        cls,
        fun: Callable[..., Any],
        recipe: str | Recipe,
        target: str | Target,
        mode: str,
        params_argnums: int | Sequence[int],
        rng: str,
        strict: bool,
        dump_to: str | os.PathLike[str] | None,
    ) -> _Options:
        chosen = targets.get(target)
        recipe = recipes.get(chosen.recipe if isinstance(recipe, str) and recipe == "auto" else recipe)
        for kind, value, known in (
            ("mode", mode, ("train", "inference")),
            ("rng", rng, ("hash", "threefry")),
        ):
            if value not in known:
                raise unknown_name(kind, value, known)
        numbers = (params_argnums,) if isinstance(params_argnums, int) else tuple(params_argnums)
        _check_argnums(fun, numbers)
        dump = Dump(dump_to or os.environ.get("SRJIT_DUMP_TO") or None, _name(fun))
        return cls(recipe, chosen, mode, numbers, rng, strict, dump)  # type: ignore[arg-type]


def _name(fun: Callable[..., Any]) -> str:
    return getattr(fun, "__name__", type(fun).__name__)


def _parameters(fun: Callable[..., Any]) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(fun).parameters.values())
    except (TypeError, ValueError):
        return None


def _check_argnums(fun: Callable[..., Any], numbers: tuple[int, ...]) -> None:
    parameters = _parameters(fun)
    if parameters is None or any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return
    count = len([p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)])
    for number in numbers:
        if not -count <= number < count and (count or number not in (0,)):
            raise ValueError(
                f"params_argnums={number} is out of range: {_name(fun)} takes {count} positional "
                f"argument{'s' * (count != 1)}"
            )


# ------------------------------------------------------------------------------ the transformation


class _Rewriter:
    """A function and how it is to be rewritten."""

    def __init__(
        self, fun: Callable[..., Any], options: _Options, is_dynamic: Callable[[Any], bool]
    ) -> None:
        self.fun, self.options, self.is_dynamic = fun, options, is_dynamic
        self.name = _name(fun)
        self.warned = False

    def run(self, key: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> tuple[Any, ProgramPlan]:
        """Traces, plans, rewrites and evaluates; key is a key, key words, or None."""
        closed, labels, leaves, unflatten = self._trace(args, kwargs)
        dump = self.options.dump
        dump.write("original.jaxpr", lambda: str(closed))
        closed = _compat.dce(closed)
        dump.write("dead-code-eliminated.jaxpr", lambda: str(closed))
        options = self.options
        settings = Settings(options.recipe, options.target, options.mode, options.rng)
        plan = self._with_notes(make_plan(closed, labels, settings), labels, leaves)
        dump.write("plan.txt", lambda: str(plan.report))
        dump.write("plan.json", plan.report.to_json)
        self._complain(plan.report)
        outs = evaluate(closed, plan, self._key_for(key, plan), leaves)
        return unflatten(outs), plan

    def _trace(
        self, args: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[Any, list[str], list[Any], Callable[[Sequence[Any]], Any]]:
        leaves, tree = jax.tree.flatten((tuple(args), kwargs))
        labels = self._labels(args, kwargs)
        arrays = [i for i, leaf in enumerate(leaves) if self.is_dynamic(leaf)]
        out: list[Any] = []

        def flat(*dynamic: Any) -> list[Any]:
            full = list(leaves)
            for i, leaf in zip(arrays, dynamic, strict=True):
                full[i] = leaf
            a, k = jax.tree.unflatten(tree, full)
            results, out_tree = jax.tree.flatten(self.fun(*a, **k))
            made = [_is_array(r) or isinstance(r, (bool, int, float, complex)) for r in results]
            out[:] = [out_tree, made, [None if m else r for r, m in zip(results, made, strict=True)]]
            return [r for r, m in zip(results, made, strict=True) if m]

        dynamic = [leaves[i] for i in arrays]
        closed = jax.make_jaxpr(flat)(*dynamic)
        out_tree, made, static = out

        def unflatten(results: Sequence[Any]) -> Any:
            values = iter(results)
            filled = [next(values) if m else s for m, s in zip(made, static, strict=True)]
            return jax.tree.unflatten(out_tree, filled)

        return closed, [labels[i] for i in arrays], dynamic, unflatten

    def _labels(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[str]:
        """A label for each leaf of (args, kwargs): parameter or data."""
        numbers = self.options.params_argnums
        for number in numbers:
            if args and not -len(args) <= number < len(args) and not kwargs:
                raise ValueError(
                    f"params_argnums={number} is out of range: {self.name} was called with "
                    f"{len(args)} positional arguments"
                )
        chosen = {n % len(args) for n in numbers if -len(args) <= n < len(args)}
        names = [p.name for p in _parameters(self.fun) or ()]
        by_name = {names[n] for n in numbers if -len(names) <= n < len(names)}
        labels: list[str] = []
        for i, arg in enumerate(args):
            label = PARAMETER if i in chosen else DATA
            labels += [label] * len(jax.tree.leaves(arg))
        for name in sorted(kwargs):
            label = PARAMETER if name in by_name else DATA
            labels += [label] * len(jax.tree.leaves(kwargs[name]))
        return labels

    def _with_notes(
        self, plan: ProgramPlan, labels: Sequence[str], leaves: Sequence[Any]
    ) -> ProgramPlan:
        floats = [
            _compat.is_float(x.dtype) for x, la in zip(leaves, labels, strict=True) if la == PARAMETER
        ]
        if any(floats):
            return plan
        note = (
            f"arguments {self.options.params_argnums} (params_argnums) hold no floating-point "
            "arrays: weights are looked for among captured arrays"
        )
        report = dataclasses.replace(plan.report, notes=(*plan.report.notes, note))
        return dataclasses.replace(plan, report=report)

    def _complain(self, report: Report) -> None:
        missing = [s for s in report.sites if s.asked and s.status == "kept"]
        if not missing:
            return
        lines = [f"  site {s.site.number} {s.site.path or s.site.location}: {s.reason}" for s in missing]
        message = (
            f"{self.name}: {len(missing)} of {len(report.sites)} sites that recipe "
            f"{report.recipe!r} asks for stay in high precision:\n" + "\n".join(lines[:10])
        )
        if self.options.strict:
            raise UnsupportedSiteError(message)
        if not self.warned:
            self.warned = True
            warnings.warn(message, stacklevel=4)

    def _key_for(self, key: Any, plan: ProgramPlan) -> Key | None:
        if self.options.mode == "inference":
            return None
        if isinstance(key, _NotDifferentiated):
            key = None
        elif key is None and plan.draws_backward:
            raise TypeError(_MISSING_KEY.format(name=self.name))
        if key is None and plan.draws_forward:
            raise TypeError(_MISSING_KEY.format(name=self.name))
        if isinstance(key, _Call):
            return mix(as_key(key.base), key.number)
        return None if key is None else as_key(key)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _Call:
    """The key of one call of a wrapper that counts: a base key and the call's number."""

    base: Any
    number: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class _NotDifferentiated:
    """No key, on concrete arguments: nothing can differentiate the call, so none may be needed."""


def _is_array(x: Any) -> bool:
    return isinstance(x, (jax.Array, np.ndarray))


def _is_traced(x: Any) -> bool:
    return isinstance(x, jax.core.Tracer)


def _words(key: Any) -> Any:
    """What a jitted function takes as a key: integers are split here, since 2**40 overflows there."""
    return int_words(key) if isinstance(key, (int, np.integer)) else key


def transform(
    fun: Callable[..., Any],
    *,
    recipe: str | Recipe = "auto",
    target: str | Target = "auto",
    mode: Mode = "train",
    params_argnums: int | Sequence[int] = 0,
    rng: Rng = "hash",
    strict: bool = False,
    dump_to: str | os.PathLike[str] | None = None,
) -> Callable[..., Any]:
    """``fun`` with its matrix multiplications quantized, not jitted.

    For ``nnx.jit``, ``eqx.filter_jit``, ``jax.pmap`` and the like, around or inside which it can
    stand. Leaves of the arguments that are not arrays stay what they are.

    Args:
      fun: any function of pytrees.
      recipe, target, mode, params_argnums, rng, strict, dump_to: as of ``srjit``.

    Returns:
      A function with ``fun``'s signature and the keyword ``sr_key`` more.
    """
    options = _Options.of(fun, recipe, target, mode, params_argnums, rng, strict, dump_to)
    rewriter = _Rewriter(fun, options, _is_array)

    @functools.wraps(fun)
    def transformed(*args: Any, sr_key: Any = None, **kwargs: Any) -> Any:
        if mode == "inference" and sr_key is not None:
            raise TypeError(_NO_KEY)
        key = sr_key
        if key is None and not any(map(_is_traced, jax.tree.leaves((args, kwargs)))):
            key = _NotDifferentiated()
        return rewriter.run(key, args, kwargs)[0]

    return transformed


# ----------------------------------------------------------------------------------- the decorator


@overload
def srjit(fun: None = None, **options: Any) -> Callable[[Callable[..., Any]], SrjitFunction]: ...
@overload
def srjit(fun: Callable[..., Any], **options: Any) -> SrjitFunction: ...
def srjit(fun: Callable[..., Any] | None = None, **options: Any) -> Any:
    """``jax.jit`` with the matrix multiplications of ``fun`` quantized.

    Args:
      fun: any function of pytrees: a training step, a loss, a layer. Without it, a decorator.
      **options: those of ``SrjitFunction``, and every option of ``jax.jit``.

    Returns:
      A SrjitFunction, called as ``jax.jit(fun)`` is, with the keyword ``sr_key`` more.

    Example:
      >>> @srjit(recipe="int8")
      ... def train_step(params, batch):
      ...     loss, grads = jax.value_and_grad(loss_fn)(params, batch)
      ...     return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads), loss
      >>> params, loss = train_step(params, batch, sr_key=jax.random.key(0))
    """
    if fun is None:
        return functools.partial(srjit, **options)
    return SrjitFunction(fun, **options)


class SrjitFunction:
    """A jitted function whose matrix multiplications are quantized; made by ``srjit``."""

    def __init__(
        self,
        fun: Callable[..., Any],
        *,
        recipe: str | Recipe = "auto",
        target: str | Target = "auto",
        mode: Mode = "train",
        layer: Literal["jaxpr"] = "jaxpr",
        params_argnums: int | Sequence[int] = 0,
        rng: Rng = "hash",
        strict: bool = False,
        key: Any = None,
        dump_to: str | os.PathLike[str] | None = None,
        **jit_options: Any,
    ) -> None:
        """Wraps ``fun``.

        Args:
          fun: the function.
          recipe: a name (``srjit.recipes.names()``), a ``.toml`` file or a Recipe; ``auto`` is the
            target's.
          target: a name (``srjit.targets.names()``) or a Target; ``auto`` is the attached device's.
          mode: ``train``, or ``inference``: nearest everywhere, no key.
          layer: ``jaxpr``.
          params_argnums: positional arguments whose arrays are parameters.
          rng: ``hash`` or ``threefry``.
          strict: whether a site that the recipe asks for and that cannot be had is an error.
          key: a base key, for calls without ``sr_key``: the wrapper counts its calls and folds the
            count in.
          dump_to: a folder for the program after every stage; ``SRJIT_DUMP_TO`` by default.
          **jit_options: as of ``jax.jit``, in terms of fun's own arguments.

        Raises:
          ValueError: unknown names (the nearest are listed), or params_argnums out of range.
        """
        if layer != "jaxpr":
            raise unknown_name("layer", layer, ("jaxpr",))
        self._options = _Options.of(
            fun, recipe, target, mode, params_argnums, rng, strict, dump_to
        )
        if key is not None:
            as_key(key)  # says at once what is wrong with it
        self._fun, self._base, self.calls = fun, key, 0
        self._jit_options = jit_options
        self._jits: dict[int, Any] = {}
        functools.update_wrapper(self, fun)

    # ------------------------------------------------------------------------------- calling

    def __call__(self, *args: Any, sr_key: Any = None, **kwargs: Any) -> Any:
        """Calls the rewritten function.

        Args:
          *args, **kwargs: fun's own.
          sr_key: a typed PRNG key or an integer step.
        """
        key = self._key(sr_key, args, kwargs, counts=True)
        jitted = self._jit_for(args)
        if self._options.dump:
            self._dump_lowered(jitted, key, args, kwargs)
        try:
            return jitted(key, *args, **kwargs)
        except ValueError as error:
            raise _explained(error, key) from None

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else types.MethodType(self, instance)

    def _key(self, sr_key: Any, args: Any, kwargs: Any, counts: bool) -> Any:
        if sr_key is not None:
            if self._options.mode == "inference":
                raise TypeError(_NO_KEY)
            return int_words(sr_key) if isinstance(sr_key, (int, np.integer)) else sr_key
        if self._options.mode == "inference":
            return None
        traced = any(map(_is_traced, jax.tree.leaves((args, kwargs))))
        if self._base is not None and not traced:
            number = self.calls
            self.calls += counts
            return _Call(_words(self._base), np.uint32(number))
        return None if traced else _NotDifferentiated()

    def _jit_for(self, args: Sequence[Any]) -> Any:
        """One jit; one an arity where a single in_sharding has to be spread over the arguments."""
        sharding = self._jit_options.get("in_shardings")
        arity = -1 if sharding is None or isinstance(sharding, tuple) else len(args)
        if arity not in self._jits:
            self._jits[arity] = self._make_jit(arity, lambda report: None)
        return self._jits[arity]

    def _make_jit(self, arity: int, see: Callable[[Report], None]) -> Any:
        rewriter = _Rewriter(self._fun, self._options, _is_traced)

        def inner(_srjit_key: Any, /, *args: Any, **kwargs: Any) -> Any:
            out, plan = rewriter.run(_srjit_key, args, kwargs)
            see(plan.report)
            return out

        functools.update_wrapper(inner, self._fun)
        own = inspect.Parameter("_srjit_key", inspect.Parameter.POSITIONAL_ONLY)
        parameters = _parameters(self._fun)
        if parameters is None:
            del inner.__wrapped__
        else:
            as_given = [own, *parameters]
            if any(p.kind is p.POSITIONAL_ONLY for p in parameters) is False:
                own = own.replace(kind=inspect.Parameter.POSITIONAL_ONLY)
            inner.__signature__ = inspect.Signature(as_given)  # type: ignore[attr-defined]
        options = dict(self._jit_options)
        for name in ("static_argnums", "donate_argnums"):
            if options.get(name) is not None:
                options[name] = jax.tree.map(lambda n: n + (n >= 0), options[name])
        sharding = options.get("in_shardings")
        if sharding is not None:
            options["in_shardings"] = (
                (None, *sharding) if isinstance(sharding, tuple) else (None, *[sharding] * arity)
            )
        return jax.jit(inner, **options)

    def _dump_lowered(self, jitted: Any, key: Any, args: Any, kwargs: Any) -> None:
        before = self._options.dump.written
        lowered = jitted.lower(key, *args, **kwargs)
        if self._options.dump.written != before:  # a new signature
            self._options.dump.write("stablehlo.mlir", lowered.as_text)

    # ----------------------------------------------------------------------- looking, without running

    def _fresh(self, args: Any) -> tuple[Any, list[Report]]:
        """A jit that nothing has traced yet, and the report of what it will trace."""
        seen: list[Report] = []
        arity = -1 if isinstance(self._jit_options.get("in_shardings"), tuple) else len(args)
        return self._make_jit(arity, seen.append), seen

    def _some_key(self, sr_key: Any, args: Any, kwargs: Any) -> Any:
        """The key that a call would take, or the type of one."""
        key = self._key(sr_key, args, kwargs, counts=False)
        if key is None or isinstance(key, _NotDifferentiated):
            inference = self._options.mode == "inference"
            return None if inference else jax.eval_shape(lambda: jax.random.key(0))
        return key

    def explain(self, *args: Any, sr_key: Any = None, **kwargs: Any) -> Report:
        """What becomes of every site, and why; nothing runs.

        Args:
          *args, **kwargs: fun's own; ``jax.ShapeDtypeStruct`` will do in place of arrays.
          sr_key: as of a call; not needed.
        """
        jitted, seen = self._fresh(args)
        jitted.trace(self._some_key(sr_key, args, kwargs), *args, **kwargs)
        return seen[0]

    def rewritten(self, *args: Any, sr_key: Any = None, **kwargs: Any) -> Any:
        """The rewritten program, a ``ClosedJaxpr`` whose first inputs are the key, if it has one."""
        jitted, _ = self._fresh(args)
        return jitted.trace(self._some_key(sr_key, args, kwargs), *args, **kwargs).jaxpr

    def trace(self, *args: Any, sr_key: Any = None, **kwargs: Any) -> Any:
        """As of ``jax.jit``: a ``jax.stages.Traced`` of the rewritten program."""
        key = self._some_key(sr_key, args, kwargs)
        return self._jit_for(args).trace(key, *args, **kwargs)

    def lower(self, *args: Any, sr_key: Any = None, **kwargs: Any) -> Lowered:
        """As of ``jax.jit``; the result compiles to something that is called as the function is.

        Without ``sr_key`` the compiled function takes a typed PRNG key.
        """
        key = self._some_key(sr_key, args, kwargs)
        return Lowered(self._jit_for(args).lower(key, *args, **kwargs), key)

    def eval_shape(self, *args: Any, sr_key: Any = None, **kwargs: Any) -> Any:
        """As of ``jax.jit``: shapes and dtypes of the outputs."""
        key = self._some_key(sr_key, args, kwargs)
        return self._jit_for(args).eval_shape(key, *args, **kwargs)

    def clear_cache(self) -> None:
        """As of ``jax.jit``."""
        for jitted in self._jits.values():
            jitted.clear_cache()


class Lowered:
    """A lowered program; ``jax.stages.Lowered`` but for the key."""

    def __init__(self, lowered: Any, key: Any) -> None:
        self._lowered, self._key = lowered, key

    def compile(self, *args: Any, **kwargs: Any) -> Compiled:
        """Compiles; options as of ``jax.stages.Lowered.compile``."""
        return Compiled(self._lowered.compile(*args, **kwargs), self._key)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lowered, name)


class Compiled:
    """A compiled program; ``jax.stages.Compiled``, called as the function is, with ``sr_key=``."""

    def __init__(self, compiled: Any, key: Any) -> None:
        self._compiled, self._key = compiled, key

    def __call__(self, *args: Any, sr_key: Any = None, **kwargs: Any) -> Any:
        """Runs the program.

        Raises:
          TypeError: ``sr_key`` is missing, or of another kind than at lowering.
        """
        if self._key is None:
            return self._compiled(None, *args, **kwargs)
        if sr_key is None:
            raise TypeError("this program was lowered with a key: call it with sr_key=")
        key = _words(sr_key)
        if isinstance(self._key, _Call):
            raise TypeError("lower with sr_key= to get a program that takes one")
        if isinstance(key, tuple) != isinstance(self._key, tuple):
            wanted = "an integer step" if isinstance(self._key, tuple) else "a typed PRNG key"
            raise TypeError(f"this program was lowered for {wanted} as sr_key, got {sr_key!r}")
        return self._compiled(key, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._compiled, name)


_NO_KEY = "mode='inference' rounds to nearest everywhere and takes no sr_key"


def _explained(error: ValueError, key: Any) -> Exception:
    if "incompatible devices" not in str(error) or not isinstance(key, jax.Array):
        return error
    return ValueError(
        f"{error}\n\nsrjit: sr_key is committed to {key.sharding}, other arguments to other devices. "
        "Replicate it: jax.device_put(key, NamedSharding(mesh, PartitionSpec())), or pass an integer "
        "step, which is not committed to any device."
    )


# ------------------------------------------------------------------------------ where people decide


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
        raise ValueError(f"role {role!r} takes gradient=0 or 1, unless it is 'fprop': got {gradient!r}")
    return jax.named_scope(role_scope(role, gradient))
