"""Arguments and results that a rewritten program has beside the original's: a key, histories."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray

from srjit._mlir import ir
from srjit.calling.keys import MissingKeyError, as_argument, key_words, sent
from srjit.passes.mlir.annotation import KEY, STATE
from srjit.program.stablehlo.operations import main_of, types_of

KeyUse = Literal["none", "optional", "required"]
Shapes = dict[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Interface:
    """The arguments and results of a program that are srjit's.

    In a module they are the last ones of ``@main``: the two words of a key as
    ``tensor<2xui32> {srjit.key}``, then the histories as arguments and results
    ``{srjit.state = "name"}``.

    Attributes:
      key: whether calls take ``sr_key``.
      states: names and shapes of the histories of delayed scales, in order.
    """

    key: KeyUse
    states: Shapes

    @classmethod
    def of(cls, module: ir.Module, arguments: int, results: int) -> Interface:
        """Reads the marks on ``@main``.

        Args:
          module: rewritten.
          arguments, results: how many the original had.

        Raises:
          ValueError: there are other new arguments or results than those, or fewer than before.
        """
        types = types_of(main_of(module.operation))[0]
        taken, returned = marks_of(module)
        has_key = any(KEY in mark for mark in taken)
        names = [mark[STATE] for mark in taken if STATE in mark]
        expected = [{}] * arguments + [{KEY: ""}] * has_key + [{STATE: n} for n in names]
        after = [{}] * results + [{STATE: n} for n in names]
        if taken != expected or returned != after or len(set(names)) != len(names):
            raise ValueError(
                f"@main of the rewritten module takes {_counted(taken)} and returns "
                f"{_counted(returned)}; the original takes {arguments} arguments and returns "
                f"{results} results. A pass may append one argument "
                "tensor<2xui32> {srjit.key}, and after it, for each "
                'history, an argument {srjit.state = "name"} and a result of that mark, no more'
            )
        if has_key and str(types[arguments]) != "tensor<2xui32>":
            raise ValueError(f"the argument {{{KEY}}} is a {types[arguments]}, not tensor<2xui32>")
        shapes = [tuple(ir.RankedTensorType(t).shape) for t in types[arguments + has_key :]]
        return cls("required" if has_key else "none", dict(zip(names, shapes, strict=True)))

    def arguments(self) -> dict[str, ShapedArray]:
        """Avals of the arguments, by what messages call them."""
        words = ShapedArray((2,), jnp.dtype("uint32"))
        key = {} if self.key == "none" else {"sr_key": words}
        names = [f"sr_state[{name!r}]" for name in self.states]
        return {**key, **dict(zip(names, self.results(), strict=True))}

    def results(self) -> list[ShapedArray]:
        """Avals of the results."""
        return [ShapedArray(s, jnp.dtype("float32")) for s in self.states.values()]

    def init_state(self) -> dict[str, jax.Array]:
        """The state of delayed scales before the first step; empty if there are none."""
        shapes = self.states.items()
        return {name: jax.device_put(np.zeros(shape, np.float32)) for name, shape in shapes}

    def check(self, name: str, has_key: bool, sr_state: Any, how: str = "") -> None:
        """Checks what a call of the program gives.

        Args:
          name: of the program.
          has_key: whether ``sr_key`` is given.
          sr_state: as given, or None.
          how: why the program draws no noise.

        Raises:
          TypeError: one of them is missing, or there is no need for it.
          ValueError: the state is of another program.
        """
        if not has_key and self.key == "required":
            raise MissingKeyError(
                f"{name} rounds stochastically and needs a key: call it with sr_key=, a typed "
                "PRNG key such as jax.random.fold_in(key, step) or an integer step"
            )
        if has_key and self.key == "none":
            raise TypeError(f"{name} draws no noise{how} and takes no sr_key")
        if (sr_state is not None) != bool(self.states):
            raise TypeError(
                f"{name} has delayed scales, which are state: call it with sr_state=, at "
                "first .init_state(); the call then returns (result, new_state)"
                if self.states
                else f"{name} has no delayed scales and takes no sr_state"
            )
        shapes = {} if sr_state is None else {n: jnp.shape(x) for n, x in sr_state.items()}
        if shapes != self.states:
            raise ValueError(
                f"sr_state does not fit {name}: it has {shapes or 'nothing'}, the program "
                f"needs {self.states}; make it with .init_state()"
            )


def marks_of(module: ir.Module) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """srjit's marks on the arguments, and on the results, of ``@main``."""
    main = main_of(module.operation)
    inputs, outputs = types_of(main)
    return _marks(main, "arg_attrs", len(inputs)), _marks(main, "res_attrs", len(outputs))


def _marks(main: ir.Operation, which: str, count: int) -> list[dict[str, str]]:
    marks: list[dict[str, str]] = []
    for attribute in ir.ArrayAttr(main.attributes[which]) if which in main.attributes else ():
        given = ir.DictAttr(attribute)
        mark = {KEY: ""} if KEY in given else {}
        if STATE in given:
            mark[STATE] = ir.StringAttr(given[STATE]).value
        marks.append(mark)
    return marks + [{}] * (count - len(marks))  # a pass may have added what it did not mark


def _counted(marks: Sequence[dict[str, str]]) -> str:
    marked = [name for mark in marks for name in mark]
    return f"{marks.count({})} unmarked" + "".join(f", {{{name}}}" for name in marked)


@jax.jit
def _stacked(key: Any) -> jax.Array:
    return jnp.stack(key_words(key))


def words_of(sr_key: Any, others: Any = ()) -> jax.Array:
    """The two key words of a call's key, as one array.

    Args:
      sr_key: a typed PRNG key or an integer step.
      others: the call's other arguments, beside which the words are to be; see ``sent``.

    Raises:
      TypeError: it is not a key.
    """
    return sent(_stacked(sent(as_argument(sr_key), ())), others)
