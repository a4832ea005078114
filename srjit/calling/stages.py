"""The stages that ``lower`` and ``compile`` return, as ``jax.stages`` has them, but for the key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from srjit.calling.arguments import Changed
from srjit.calling.counter import Counter
from srjit.calling.keys import Counted, IfNeeded, Stateful, as_words, sent


@jax.jit
def _any_key() -> Any:
    return jax.random.key(0)


class _Stage:
    """A stage of ``jax.stages``, whose attributes it has, and the key that it was made with."""

    def __init__(
        self, stage: Any, key: Any, counter: Counter, key_is_optional: bool = False
    ) -> None:
        self._stage, self._counter, self._key_is_optional = stage, counter, key_is_optional
        self._is_stateful = isinstance(key, Stateful)
        self._key = key.key if isinstance(key, Stateful) else key
        self._made_with = key, counter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stage, name)


class Traced(_Stage):
    """A traced program; ``jax.stages.Traced`` but for the key."""

    def lower(self, **options: Any) -> Lowered:
        """Lowers; options as of ``jax.stages.Traced.lower``."""
        jaxpr, is_optional = self._stage.jaxpr.jaxpr, False
        if isinstance(self._key, IfNeeded):
            read = [*jaxpr.outvars, *(v for eqn in jaxpr.eqns for v in eqn.invars)]
            is_optional = not any(v is jaxpr.invars[0] for v in read)
        return Lowered(self._stage.lower(**options), *self._made_with, is_optional)


class Lowered(_Stage):
    """A lowered program; ``jax.stages.Lowered`` but for the key."""

    def compile(self, *args: Any, **kwargs: Any) -> Compiled:
        """Compiles; options as of ``jax.stages.Lowered.compile``."""
        return self.around(self._stage.compile(*args, **kwargs))

    def around(self, compiled: Callable[..., Any]) -> Compiled:
        """``compiled``, which takes a key first, called as the function is, with ``sr_key=``."""
        return Compiled(compiled, *self._made_with, self._key_is_optional)


class Compiled(_Stage):
    """A compiled program; ``jax.stages.Compiled``, called as the function is, with ``sr_key=``."""

    def __init__(self, *made: Any) -> None:
        super().__init__(*made)
        self._unused_key = IfNeeded(_any_key()) if self._key_is_optional else None

    def __call__(self, *args: Any, sr_key: Any = None, sr_state: Any = None, **kwargs: Any) -> Any:
        """Runs the program.

        A program that was lowered with an integer takes any integer, one that was lowered without
        ``sr_key`` takes a typed key, or counts its calls with the function that it came from.

        Raises:
          TypeError: ``sr_key`` is missing, or of another kind than at lowering; so for
            ``sr_state``.
        """
        if self._is_stateful != (sr_state is not None):
            had = (
                "delayed scales: call it with"
                if self._is_stateful
                else "no delayed scales and takes no"
            )
            raise TypeError(f"this program has {had} sr_state")
        key = self._key_for(sr_key)
        given = sent(key, (args, kwargs))
        try:
            out = self._stage(
                Stateful(given, sr_state) if self._is_stateful else given, *args, **kwargs
            )
        except BaseException:
            self._counter.give_back(key)
            raise
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
            return self._counter.next()
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
