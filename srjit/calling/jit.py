"""``jax.jit`` of what takes a key in front of a function's own arguments."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax

from srjit.calling.signature import called_as, parameters_of

_STATIC = ("static_argnums", "static_argnames")


class KeyedJit:
    """``jax.jit`` of ``run(key, args, kwargs)``, called as ``fun`` is with a key in front.

    One jit serves all calls, but where a single in_sharding is about every argument: then there is
    one for each number of positional arguments.

    Args:
      fun: whose signature it has.
      run: what is jitted.
      options: of ``jax.jit``, in terms of fun's own arguments.
    """

    def __init__(
        self, fun: Callable[..., Any], run: Callable[..., Any], options: dict[str, Any]
    ) -> None:
        self._fun, self._options = fun, options
        self._run = called_as(fun, run, "_srjit_key")
        given = options.get("in_shardings")
        self._one_sharding = given is not None and not isinstance(given, (tuple, list))
        self._jits: dict[int | None, Any] = {}
        if not self._one_sharding:
            self._jits[None] = self._made(() if given is None else (None, *given))

    def of(self, args: Sequence[Any]) -> Any:
        """The ``jax.jit`` that these positional arguments, after a key, are for."""
        count = len(args) if self._one_sharding else None
        if count not in self._jits:
            dynamic = len(args) - len(self._static_positions(len(args)))
            self._jits[count] = self._made((None, *[self._options["in_shardings"]] * dynamic))
        return self._jits[count]

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

    def _made(self, in_shardings: tuple[Any, ...]) -> Any:
        own = {"in_shardings": in_shardings} if in_shardings else {}
        return jax.jit(self._run, **_shifted({**self._options, **own}))

    def _static_positions(self, count: int) -> set[int]:
        """Which of ``count`` positional arguments are static, as jax.jit infers it."""
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
