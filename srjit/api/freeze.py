"""``freeze``: weights quantized once, for inference, and the function that takes them packed."""

from __future__ import annotations

import collections
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from srjit.api.bound import unbound
from srjit.api.function import SrjitFunction
from srjit.api.options import Chosen, Resolved
from srjit.api.transformation import TracedFunction, Transformation, is_traced
from srjit.calling.arguments import Arguments
from srjit.calling.jit import as_tuple
from srjit.calling.signature import called_as, name_of, parameters_of
from srjit.jaxprs.packed_weights import Frozen, with_packed_weights
from srjit.numerics.quantization import Quantization

Arrays = dict[str, Any]
_MARKS = "srjit["  # the beginning of the name that tells how weights are packed
_MARK = np.ones(1, np.uint8)  # what is called so: the version of the layout of packed arrays


def freeze(fn: Any, /, *args: Any, **kwargs: Any) -> tuple[Arrays, Callable[..., Any]]:
    """The parameters of a function with its weights quantized and packed, and what runs on them.

    A weight is an operand of a matrix multiplication that the recipe quantizes and that is made of
    parameters alone, with casts, transposes, reshapes and the slices that ``lax.scan`` takes of
    stacked layers. It is packed where its codes and scales take less memory than the parameters
    that nothing else needs.

    Args:
      fn: a function that ``srjit`` decorated, in either mode and layer, with one argument of
        parameters. What is frozen is its inference mode. Of a method, the object is the first
        argument of ``run``.
      *args, **kwargs: fn's own, parameters in their place; ``jax.ShapeDtypeStruct`` will do in
        place of arrays. With such parameters, packed ones are ShapeDtypeStructs too.

    Returns:
      A pair ``(packed, run)``:

      - ``packed``, a dict of arrays by names such as ``layers.0.w``. A packed weight is
        ``layers.0.w.codes`` (int8; or uint8 with the bits of FP8, or of two codes of int4 or FP4,
        the first in the low ones), ``.scale`` (float32, or uint8 with the bits of E4M3 or E8M0)
        and, for NVFP4, ``.tensor_scale`` (float32). Stacked layers have a leading dimension. Every
        other parameter is what it was. One array of one byte is called
        ``srjit[recipe=...,formats=...,layout=...]``: ``run`` refuses weights packed otherwise.
      - ``run``, a function jitted as fn is, that takes ``packed`` in place of the parameters and
        returns what fn returns in inference mode. Other shapes of the other arguments are fine
        while the recipe quantizes the same weights there. In derivatives, which packed weights
        have none of, the values that the codes stand for are taken for the weights.

    Raises:
      TypeError: fn is not what ``srjit`` returned, or has no parameters among its positional
        arguments.
      ValueError: fn has several arguments of parameters, static ones, scales that are state, or
        shardings for each of its arguments; two parameters have one name; or making a weight of
        parameters has side effects. ``run`` raises it for arrays that are not those of ``packed``.

    Example:
      >>> packed, run = srjit.freeze(srjit.srjit(apply, recipe="nvfp4"), params, tokens)
      >>> safetensors.flax.save_file(packed, "model.safetensors")
      >>> logits = run(safetensors.flax.load_file("model.safetensors"), tokens)
    """
    fn, args = unbound(fn, args, kwargs)
    if not isinstance(fn, SrjitFunction):
        raise TypeError(f"srjit.freeze takes a function that srjit(...) returned, got {fn!r}")
    fun, given = fn.made_of()
    options = Resolved.of(fun, given.alone(mode="inference"))
    recipe = options.settings.recipe
    if recipe.has_delayed_scales:
        raise ValueError(
            f"recipe {recipe.name!r} has delayed scales, which are state and change at "
            "every call: freeze with a recipe whose scales are dynamic or static, such as 'fp8'"
        )
    found = Transformation(fun, options, _stands_for_array)
    position = _position(fn.name, fn.seen(lambda a, k: found.traced(a, k).owners, args, kwargs))
    options = dataclasses.replace(options, parameters=Chosen((position,), ()))
    transformation = Transformation(fun, options, _stands_for_array)
    jit_options = _for_packed(fun, given.jit_options, position, len(args))
    structs, named = fn.seen(_structs_of, args, kwargs)
    function = _Function(transformation, position, structs[position])
    program = function.traced(structs, named)
    transformation.complain(program.plan)
    layout = _Layout.of(program)
    leaves = Arguments.of((args[position],), {}).leaves  # in the order in which programs take them
    packed: Arrays = dict(layout.shapes)
    if not any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves):
        packed |= jax.jit(layout.pack)(leaves)
        kept = {name: leaves[i] for name, i in layout.names.items()}
        packed |= {n: jax.device_put(_MARK) for n in layout.shapes if n.startswith(_MARKS)}
        packed |= {n: x if hasattr(x, "dtype") else jnp.asarray(x) for n, x in kept.items()}
    run = called_as(fun, functools.partial(function.call, layout.shapes))
    return packed, jax.jit(run, **jit_options)


def _position(name: str, owners: Sequence[int | str]) -> int:
    """The position of the one argument that is parameters."""
    if len(owners) != 1:
        found = (
            f"has {len(owners)} ({', '.join(map(str, owners))})"
            if owners
            else "has no arrays there"
        )
        raise ValueError(
            f"srjit.freeze packs the parameters of one argument; {name} {found}: make them one "
            "pytree, or say which with params_argnums="
        )
    (owner,) = owners
    if isinstance(owner, str):
        raise TypeError(
            f"srjit.freeze takes the arguments of {name} with its parameters by position, and got "
            f"{owner} by keyword"
        )
    return owner


def _stands_for_array(x: Any) -> bool:
    return is_traced(x) or isinstance(x, jax.ShapeDtypeStruct)


def _for_packed(
    fun: Callable[..., Any], options: dict[str, Any], position: int, count: int
) -> dict[str, Any]:
    """Options of ``jax.jit`` for a function with other parameters, which are there to stay."""
    name = name_of(fun)
    if isinstance(options.get("in_shardings"), (tuple, list)):
        raise ValueError(
            f"{name} has in_shardings for each of its arguments, and packed parameters are other "
            "arrays: leave in_shardings out, and shard the arrays"
        )
    parameters = [p.name for p in parameters_of(fun) or ()]
    called = parameters[position : position + 1]

    def others(option: str) -> tuple[Any, ...]:
        """Returns an option without the position and the name of the parameters."""
        given = as_tuple(options.get(option))
        return tuple(x for x in given if x not in (position, position - count, *called))

    donated = {o: others(o) for o in ("donate_argnums", "donate_argnames") if options.get(o)}
    return {**options, **donated}


def _structs_of(*arguments: Any) -> Any:
    """Returns arguments with shapes and dtypes in place of all that fun is traced with."""

    def struct(x: Any) -> Any:
        weak = getattr(jax.typeof(x), "weak_type", False)
        return jax.ShapeDtypeStruct(x.shape, x.dtype, weak_type=weak)

    return jax.tree.map(lambda x: struct(x) if is_traced(x) else x, arguments)


@dataclasses.dataclass(frozen=True)
class _Layout:
    """The arrays of packed parameters, and how to make them.

    Attributes:
      shapes: of all packed arrays, by name.
      program: the program with packed weights.
      weights: names of the parts of every weight, by their kinds.
      names: of the parameters that are kept, by position among them.
      inputs: positions of all parameters among the inputs of the program.
      count: of these inputs.
    """

    shapes: dict[str, jax.ShapeDtypeStruct]
    program: Frozen
    weights: list[dict[str, str]]
    names: dict[str, int]
    inputs: list[int]
    count: int

    @classmethod
    def of(cls, program: TracedFunction) -> _Layout:
        """The layout of a program's packed parameters."""
        is_parameter = [i in program.parameters for i in range(len(program.leaves))]
        made = with_packed_weights(program.closed, program.plan, is_parameter)
        inputs = [i for i, own in enumerate(is_parameter) if own]
        names = {i: _plain(program.names[i]) for i in inputs}
        shapes: list[tuple[str, jax.ShapeDtypeStruct]] = []
        kept: dict[str, int] = {}
        for n, i in enumerate(inputs):
            if i in made.kept:
                leaf = program.leaves[i]
                shapes.append((names[i], jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)))
                kept[names[i]] = n
        weights: list[dict[str, str]] = []
        stems: list[str] = []
        packed_as: list[tuple[str, Quantization]] = []
        for weight in made.weights:
            stem = "+".join(names[i] for i in weight.sources)
            again = stems.count(stem)  # as of the parts of a fused projection
            stems.append(stem)
            stem += f".{again}" * bool(again)
            weights.append({kind: f"{stem}.{kind}" for kind in weight.parts})
            shapes += [(f"{stem}.{kind}", part) for kind, part in weight.parts.items()]
            packed_as.append((stem, weight.key[1].spec))
        if packed_as:
            mark = _mark(program.plan.settings.recipe.name, packed_as)
            shapes.append((mark, jax.ShapeDtypeStruct(_MARK.shape, _MARK.dtype)))
        ordered = dict(sorted(shapes, key=lambda item: item[0]))
        if len(ordered) < len(shapes):
            name, _ = collections.Counter(name for name, _ in shapes).most_common(1)[0]
            raise ValueError(f"several packed arrays would be called {name!r}: rename parameters")
        return cls(ordered, made, weights, kept, inputs, len(program.leaves))

    def pack(self, leaves: Sequence[Any]) -> Arrays:
        """The parts of every weight, by name, made of the leaves of the parameters."""
        inputs: list[Any] = [None] * self.count
        for i, leaf in zip(self.inputs, leaves, strict=True):
            inputs[i] = leaf
        made = self.program.pack(inputs)
        return {
            names[kind]: parts[kind]
            for names, parts in zip(self.weights, made, strict=True)
            for kind in names
        }


@dataclasses.dataclass(frozen=True)
class _Function:
    """A function of which the parameters are packed.

    Attributes:
      transformation: of the function.
      position: of the parameters among its positional arguments.
      structs: shapes and dtypes of the parameters.
    """

    transformation: Transformation
    position: int
    structs: Any

    def call(self, shapes: dict[str, Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Calls the function.

        Args:
          shapes: of the packed arrays.
          args, kwargs: the function's, with packed arrays in place of the parameters.
        """
        name = self.transformation.name
        if self.position >= len(args):
            raise TypeError(f"{name} takes its packed parameters as argument {self.position}")
        packed = _checked(name, args[self.position], shapes)
        program = self.traced(args, kwargs)
        layout = _Layout.of(program)
        if layout.shapes != shapes:
            other = sorted({*layout.shapes.items()} ^ {*shapes.items()}, key=str)
            raise ValueError(
                f"with these arguments {name} quantizes other weights than those that were packed "
                f"({', '.join(n for n, _ in other[:4])}): freeze it for arguments of these shapes"
            )
        leaves = list(program.leaves)
        kept = {layout.inputs[i]: packed[name] for name, i in layout.names.items()}
        for i in layout.inputs:
            leaves[i] = kept[i] if i in kept else _absent(leaves[i])
        stored = [{kind: packed[n] for kind, n in names.items()} for names in layout.weights]
        out, changes = program.unflatten(layout.program.run(leaves, stored))
        if changes is not None:
            raise TypeError(
                f"{name} changes objects in place, as dropout and normalization do in training, "
                "which a frozen function cannot: for flax.nnx, call model.eval() first"
            )
        return out

    def traced(self, args: Sequence[Any], kwargs: dict[str, Any]) -> TracedFunction:
        """The function with its own parameters, traced for the other arguments."""
        args = [*args[: self.position], self.structs, *args[self.position + 1 :]]
        return self.transformation.traced(args, kwargs)


def _absent(struct: Any) -> jax.Array:
    """In place of a parameter that nothing reads; if anything did, NaN would show it."""
    is_float = jnp.issubdtype(struct.dtype, jnp.inexact)
    return jnp.full(struct.shape, jnp.nan if is_float else 0, struct.dtype)


def _plain(name: str) -> str:
    """``layers.0.w`` for ``params['layers'][0].w``."""
    inside = re.sub(r"^(args\[\d+\]|\w+)", "", name)
    steps = re.sub(r"\['?(.*?)'?\]", r".\1", inside).strip(".")
    return steps or "params"


def _mark(recipe: str, weights: Sequence[tuple[str, Quantization]]) -> str:
    """The name of an array that tells how weights are packed; a file keeps names whatever it is.

    Args:
      recipe: its name.
      weights: names of weights, and how each is quantized.
    """
    formats = "+".join(sorted({q.format for _, q in weights}))
    given = [recipe, [(name, _told(q)) for name, q in weights]]
    layout = hashlib.sha256(json.dumps(given, default=str).encode()).hexdigest()[:8]
    plain = re.sub(r"[^-+=~,.\w]", "_", recipe)
    return f"{_MARKS}recipe={plain},formats={formats},layout={layout}]"


def _told(q: Quantization) -> dict[str, Any]:
    """The fields that differ from their defaults, so that a new field does not change old marks."""
    fields = {f.name: (getattr(q, f.name), f.default) for f in dataclasses.fields(q)}
    return {name: value for name, (value, default) in fields.items() if value != default}


def _checked(name: str, packed: Any, shapes: dict[str, Any]) -> Mapping[str, Any]:
    """The packed arrays, if they are what they should be."""
    if not isinstance(packed, Mapping):
        raise ValueError(
            f"{name} is frozen: it takes the dict of arrays that srjit.freeze returned in place of "
            f"the parameters, got {type(packed).__name__}"
        )
    differ = sorted(n for n in set(shapes) ^ set(packed) if not n.startswith(_MARKS))
    missing, more = ([n for n in differ if n in names] for names in (shapes, packed))
    if missing or more:
        what = f"lack {missing[:4]}" if missing else f"have {more[:4]} more"
        raise ValueError(
            f"these are not the packed parameters that {name} was frozen for: they {what}"
        )
    marks, wanted = ([n for n in given if n.startswith(_MARKS)] for given in (packed, shapes))
    if marks != wanted:
        raise ValueError(
            f"these weights are packed as {marks or 'nothing says, by another version of srjit'}, "
            f"and {name} was frozen for {wanted or 'none'}: freeze them with the recipe that they "
            "are used with"
        )
    for key, want in shapes.items():
        array = packed[key]
        if (array.shape, array.dtype) != (want.shape, want.dtype):
            raise ValueError(
                f"packed[{key!r}] is {array.dtype}{list(array.shape)}, {name} was frozen for "
                f"{want.dtype}{list(want.shape)}"
            )
    return packed
