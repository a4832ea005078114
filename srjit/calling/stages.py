"""What ``lower`` and ``compile`` return: as of ``jax.stages``, called as the function is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from srjit.calling.arguments import Changed
from srjit.calling.keys import Counted, IfNeeded, Stateful, as_words


class Traced:
    """A traced program; ``jax.stages.Traced`` but for the key."""

    def __init__(self, traced: Any, key: Any, next_key: Callable[[], Any]) -> None:
        self._traced, self._key, self._next_key = traced, key, next_key

    def lower(self, **options: Any) -> Lowered:
        """Lowers; options as of ``jax.stages.Traced.lower``."""
        key = self._key.key if isinstance(self._key, Stateful) else self._key
        optional = isinstance(key, IfNeeded) and not _reads_first_input(self._traced)
        lowered = self._traced.lower(**options)
        return Lowered(lowered, self._key, self._next_key, optional)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._traced, name)


class Lowered:
    """A lowered program; ``jax.stages.Lowered`` but for the key."""

    def __init__(
        self, lowered: Any, key: Any, next_key: Callable[[], Any], key_is_optional: bool
    ) -> None:
        self._lowered, self._key, self._next_key = lowered, key, next_key
        self._key_is_optional = key_is_optional

    def compile(self, *args: Any, **kwargs: Any) -> Compiled:
        """Compiles; options as of ``jax.stages.Lowered.compile``."""
        compiled = self._lowered.compile(*args, **kwargs)
        return self.around(compiled)

    def around(self, compiled: Callable[..., Any]) -> Compiled:
        """``compiled``, which takes a key first, called as the function is, with ``sr_key=``."""
        return Compiled(compiled, self._key, self._next_key, self._key_is_optional)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lowered, name)


class Compiled:
    """A compiled program; ``jax.stages.Compiled``, called as the function is, with ``sr_key=``."""

    def __init__(
        self, compiled: Any, key: Any, next_key: Callable[[], Any], key_is_optional: bool
    ) -> None:
        self._stateful = isinstance(key, Stateful)
        self._key = key.key if isinstance(key, Stateful) else key
        self._compiled, self._next_key = compiled, next_key
        self._unused_key = IfNeeded(jax.random.key(0)) if key_is_optional else None

    def __call__(self, *args: Any, sr_key: Any = None, sr_state: Any = None, **kwargs: Any) -> Any:
        """Runs the program.

        A program that was lowered with an integer takes any integer, one that was lowered without
        ``sr_key`` takes a typed key, or counts its calls with the function that it came from.

        Raises:
          TypeError: ``sr_key`` is missing, or of another kind than at lowering; so for
            ``sr_state``.
        """
        if self._stateful != (sr_state is not None):
            had = (
                "delayed scales: call it with"
                if self._stateful
                else "no delayed scales and takes no"
            )
            raise TypeError(f"this program has {had} sr_state")
        key = self._key_for(sr_key)
        out = self._compiled(Stateful(key, sr_state) if self._stateful else key, *args, **kwargs)
        return out.handed_back(args, kwargs) if isinstance(out, Changed) else out

    def _key_for(self, sr_key: Any) -> Any:
        if self._key is None:
            if sr_key is not None:
                raise TypeError("this program was lowered without a key, and takes no sr_key")
            return None
        if isinstance(self._key, Counted):
            if sr_key is not None:
                raise TypeError(
                    "this program was lowered to count its calls from the base key: lower it with "
                    "sr_key= to get one that takes a key"
                )
            return self._next_key()
        if sr_key is None:
            if self._unused_key is None:
                raise TypeError("this program rounds stochastically: call it with sr_key=")
            return self._unused_key
        key = as_words(sr_key)
        if isinstance(self._key, IfNeeded):
            key = IfNeeded(key)
        if jax.tree.structure(key) != jax.tree.structure(self._key):
            integer = isinstance(self._key, tuple) and not isinstance(self._key, IfNeeded)
            wanted = "an integer step" if integer else "a typed PRNG key"
            raise TypeError(
                f"this program was lowered for {wanted} as sr_key, got {sr_key!r}: lower it with "
                "such an sr_key"
            )
        return key

    def __getattr__(self, name: str) -> Any:
        return getattr(self._compiled, name)


def _reads_first_input(traced: Any) -> bool:
    """Whether a traced program reads its first input, or returns it."""
    jaxpr = traced.jaxpr.jaxpr
    first = jaxpr.invars[0]
    return any(v is first for eqn in jaxpr.eqns for v in eqn.invars) or first in jaxpr.outvars
