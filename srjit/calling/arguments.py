"""A call's arguments as flat leaves, and back.

Flax NNX objects are among them as what they are, graphs with state that a function may change in
place: a function that runs on rebuilt arguments has to hand its changes back. (As the pytrees that
they also are, their changes would be lost without a word, under ``jax.jit`` too.)
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax


class Changed(NamedTuple):
    """A function's result, and the state that its arguments' objects have afterwards."""

    out: Any
    state: Any

    def handed_back(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Gives a call's objects their state, and returns what the function returned."""
        Objects.among(args, kwargs).update(self.state)
        return self.out


@dataclasses.dataclass(frozen=True)
class Arguments:
    """The arguments of one call, taken apart.

    Attributes:
      leaves: arrays and whatever else the leaves are; an object's state counts by its leaves.
      owners: for each leaf, the position of its argument, or its keyword.
      paths: for each leaf, where it is in its argument: ``['layer'].w``.
      tree: how the arguments hang together; objects are leaves of it.
      positions: which leaves of ``tree`` are objects.
      definition, state_tree: of all objects together, since they may share what they hold.
    """

    leaves: list[Any]
    owners: list[int | str]
    paths: list[str]
    tree: Any
    positions: list[int]
    definition: Any
    state_tree: Any

    @classmethod
    def of(cls, args: Sequence[Any], kwargs: dict[str, Any]) -> Arguments:
        """Takes a call's arguments apart."""
        is_leaf = _is_object if _nnx() else None
        keyed, tree = jax.tree_util.tree_flatten_with_path((tuple(args), kwargs), is_leaf=is_leaf)
        flat = [leaf for _, leaf in keyed]
        # The first two steps of a path are which argument it is in.
        owners = [at.idx if hasattr(at, "idx") else at.key for (_, at, *_), _ in keyed]
        names = [jax.tree_util.keystr(path[2:]) for path, _ in keyed]
        positions = [i for i, leaf in enumerate(flat) if _is_object(leaf)]
        if not positions:
            return cls(flat, owners, names, tree, [], None, None)
        definition, state = _nnx().split([flat[i] for i in positions])
        paths, state_tree = jax.tree_util.tree_flatten_with_path(state)
        plain = [i for i in range(len(flat)) if i not in set(positions)]
        # The first step of a path into the state is the object's position.
        inside = [owners[positions[path[0].key]] for path, _ in paths]
        return cls(
            [flat[i] for i in plain] + [leaf for _, leaf in paths],
            [owners[i] for i in plain] + inside,
            [names[i] for i in plain]
            + [names[positions[p[0].key]] + jax.tree_util.keystr(p[1:]) for p, _ in paths],
            tree,
            positions,
            definition,
            state_tree,
        )

    def rebuild(self, leaves: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any], Objects]:
        """(args, kwargs) of ``leaves``, and the objects among them."""
        if not self.positions:
            return *jax.tree.unflatten(self.tree, leaves), Objects([])
        n = self.tree.num_leaves - len(self.positions)
        state = jax.tree.unflatten(self.state_tree, leaves[n:])
        objects = dict(zip(self.positions, _nnx().merge(self.definition, state), strict=True))
        plain = iter(leaves[:n])
        flat = [objects[i] if i in objects else next(plain) for i in range(self.tree.num_leaves)]
        return *jax.tree.unflatten(self.tree, flat), Objects(list(objects.values()))


class Objects:
    """Objects that a function may change in place, and what they were before."""

    def __init__(self, objects: list[Any]) -> None:
        self._objects = objects
        self._definition, self._leaves, self._tree = self._split()

    @classmethod
    def among(cls, args: Sequence[Any], kwargs: dict[str, Any]) -> Objects:
        """Those among the arguments of a call."""
        leaves = jax.tree.leaves((tuple(args), kwargs), is_leaf=_is_object)
        return cls([x for x in leaves if _is_object(x)])

    def _split(self) -> tuple[Any, list[Any], Any]:
        definition, state = _nnx().split(self._objects) if self._objects else (None, None)
        # Leaves, because the state's Variables are the objects' own, and change with them.
        return definition, *jax.tree.flatten(state)

    def changes(self, name: str) -> Any:
        """Their state if it is not what it was, else None.

        Raises:
          TypeError: more than values changed: the function ``name`` added or removed something.
        """
        definition, leaves, tree = self._split()
        if definition != self._definition or tree != self._tree:
            raise TypeError(
                f"{name} changes the structure or the static attributes of the flax.nnx objects "
                "among its arguments (a Variable added, train() or eval() called, ...): do that "
                "outside of srjit, which can only hand back new values"
            )
        changed = any(a is not b for a, b in zip(leaves, self._leaves, strict=True))
        return jax.tree.unflatten(tree, leaves) if changed else None

    def update(self, state: Any) -> None:
        """Gives them a state that ``changes`` returned for their copies.

        Raises:
          TypeError: they share what their copies do not.
        """
        if jax.tree.structure(state) != self._tree:
            raise TypeError(
                "the flax.nnx objects among the arguments share state with each other, which "
                "jax.jit cannot see: use nnx.jit(srjit.transform(fun)) in place of srjit(fun)"
            )
        _nnx().update(self._objects, state)


def _nnx() -> Any:
    """flax.nnx, if the program uses it."""
    return sys.modules.get("flax.nnx")


def _is_object(x: Any) -> bool:
    nnx = _nnx()
    return nnx is not None and isinstance(x, (nnx.Pytree, nnx.Variable))
