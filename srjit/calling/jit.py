"""``jax.jit`` of what takes a key in front of a function's own arguments."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax

from srjit.calling.layout import Layout, Run, layout_of
from srjit.calling.signature import called_as, parameters_of

_STATIC = ("static_argnums", "static_argnames")


class KeyedJit:
    """``jax.jit`` of ``run(key, args, kwargs, layout)``, called as ``fun`` is with a key in front.

    One jit serves all calls, but where a single in_sharding is about every argument: then there is
    one for each number of positional arguments; and where what is traced depends on the layout.

    Args:
      fun: whose signature it has.
      run: what is jitted.
      options: of ``jax.jit``, in terms of fun's own arguments.
      by_layout: whether ``run`` depends on the layout; else that is empty.
    """

    def __init__(
        self,
        fun: Callable[..., Any],
        run: Run,
        options: dict[str, Any],
        by_layout: bool = False,
    ) -> None:
        self._fun, self._run, self._options = fun, run, options
        self._by_layout = by_layout
        given = options.get("in_shardings")
        self._one_sharding = given is not None and not isinstance(given, (tuple, list))
        self._jits: dict[tuple[int | None, Layout], Any] = {}
        if not self._one_sharding:  # says at once what is wrong with the options
            self.of((), {})

    def of(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """The ``jax.jit`` that these arguments, after a key, are for."""
        count, layout = len(args) if self._one_sharding else None, self.layout(args, kwargs)
        jitted = self._jits.get((count, layout))
        if jitted is None:
            given = self._options.get("in_shardings")
            if count is not None:
                given = [given] * (count - len(self._static_positions(count)))
            jitted = self._jits[count, layout] = self._made(given, layout)
        return jitted

    def layout(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Layout:
        """The layout of these arguments, if what is traced depends on it."""
        if not self._by_layout:
            return ()
        return layout_of(args, kwargs, self.in_shardings(len(args)))

    def in_shardings(self, count: int) -> tuple[Any, ...]:
        """The sharding of each of ``count`` positional arguments; None for static ones."""
        given = self._options.get("in_shardings")
        if not isinstance(given, (tuple, list)):
            return (given,) * count
        static, rest = self._static_positions(count), iter(given)
        return tuple(None if i in static else next(rest, None) for i in range(count))

    def clear_cache(self) -> None:
        """Clears the compiled programs, as ``jax.jit`` does."""
        for jitted in self._jits.values():
            jitted.clear_cache()

    def _made(self, in_shardings: Sequence[Any] | None, layout: Layout) -> Any:
        own = {} if in_shardings is None else {"in_shardings": (None, *in_shardings)}
        run = functools.partial(self._run, layout=layout)
        return jax.jit(
            called_as(self._fun, run, "_srjit_key"), **_shifted({**self._options, **own})
        )

    def _static_positions(self, count: int) -> set[int]:
        """The static ones of ``count`` positional arguments, as jax.jit infers them."""
        numbers, names = (as_tuple(self._options.get(name)) for name in _STATIC)
        if not numbers and names:
            parameters = [p.name for p in parameters_of(self._fun) or ()]
            numbers = [parameters.index(name) for name in names if name in parameters]
        return {n % count for n in numbers if -count <= n < count}


def static_only(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options of ``jax.jit`` that tracing depends on."""
    return {name: value for name, value in options.items() if name in _STATIC}


def explain(error: ValueError, key: Any, arguments: Any) -> None:
    """Says where the key has to do with an error of ``jax.jit``; raises one that blames it."""
    if "in_shardings specification" in str(error):
        error.add_note("srjit counts sr_key as an argument, and None as its in_sharding")
    if "incompatible devices" not in str(error) or not isinstance(key, jax.Array):
        return
    others: set[frozenset[Any]] = {
        frozenset(x.sharding.device_set)
        for x in jax.tree.leaves(arguments)
        if isinstance(x, jax.Array) and x.committed
    }
    if len(others) == 1 and key.committed and frozenset(key.sharding.device_set) not in others:
        raise ValueError(
            f"sr_key is committed to {key.sharding}, the other arguments to other devices. "
            "Replicate it, with jax.device_put(key, NamedSharding(mesh, PartitionSpec())), or pass "
            "an integer step, which is not committed to any device"
        ) from error


def as_tuple(value: Any) -> Sequence[Any]:
    """Returns positions or names that an option of ``jax.jit`` gives, one or several."""
    if value is None:
        return ()
    return (value,) if isinstance(value, (int, str)) else tuple(value)


def _shifted(options: dict[str, Any]) -> dict[str, Any]:
    """Options of ``jax.jit`` for a function with one more argument in front."""
    numbers = ("static_argnums", "donate_argnums")
    return {
        name: tuple(n + (n >= 0) for n in as_tuple(value)) if name in numbers and value is not None
        else value
        for name, value in options.items()
    }  # fmt: skip
