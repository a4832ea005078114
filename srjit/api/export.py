"""``export`` and ``load``: a rewritten program as a file, which runs without the code it was."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import typing
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.export
import jax.numpy as jnp

from srjit import _compat
from srjit.api import program_file
from srjit.api.bound import unbound
from srjit.api.function import SrjitFunction
from srjit.calling.keys import IfNeeded, Stateful, Words
from srjit.modules.interface import Interface, KeyUse, words_of
from srjit.modules.rejit import Rejitted
from srjit.modules.source import called_back
from srjit.numerics.random_bits import warn_of_repetition
from srjit.passes.mlir.serialization import replace_file

# What srjit's own programs call and jax.export does not list: XLA has it on every backend.
_OWN_CALLS = ("LayoutConstraint",)

for _type in (IfNeeded, Stateful, Words):
    jax.export.register_namedtuple_serialization(_type, serialized_name=f"srjit.{_type.__name__}")


def export(fn: Any, /, *args: Any, sr_key: Any = None, **kwargs: Any) -> Exported:
    """A rewritten program, to be kept in a file and run by another process.

    It is what ``jax.export`` makes of the rewritten program, with what ``sr_key`` and ``sr_state``
    mean: it runs wherever its platform is, for as long as ``jax.export`` keeps its promises, and
    needs neither the Python code that it came from nor the passes that rewrote it.

    Args:
      fn: a function that ``srjit`` decorated, in either layer, or that ``rejit`` returned. Of a
        method, the object is the first argument of the program, unless it is static.
      *args, **kwargs: fn's own; ``jax.ShapeDtypeStruct`` will do in place of arrays. A function of
        ``rejit`` has been lowered for its arguments already, and takes none here.
      sr_key: as of a call; not needed.

    Returns:
      A program that is called as ``fn`` is, without its static arguments, has ``save(path)``, and
      is loaded by ``srjit.load``.

    Raises:
      TypeError: ``fn`` is not a function of srjit's.
      ValueError: the program has what no other process can run, such as host callbacks; or a pytree
        type among its arguments is not known to ``jax.export``
        (``jax.export.register_pytree_node_serialization``).

    Example:
      >>> srjit.export(train_step, params, batch).save("train_step.srjit")
      >>> params, loss = srjit.load("train_step.srjit")(params, batch, sr_key=0)
    """
    if sr_key is not None:
        words_of(sr_key)  # says what is wrong with it
    fn, args = unbound(fn, args, kwargs)
    if isinstance(fn, Rejitted):
        if args or kwargs:
            raise TypeError(
                f"{fn.name} was lowered for its arguments before srjit.rejit: export it without any"
            )
        return _of_rejitted(fn)
    if isinstance(fn, SrjitFunction):
        return _of_decorated(fn, args, kwargs)
    raise TypeError(
        f"srjit.export takes a function that srjit(...) or srjit.rejit(...) returned, got {fn!r}"
    )


def _of_decorated(fn: SrjitFunction, args: Any, kwargs: Any) -> Exported:
    words = Words(jax.ShapeDtypeStruct((2,), jnp.uint32))
    jitted, key = fn.keyed(IfNeeded(words), args, kwargs)
    info = jitted.trace(key, *args, **kwargs).args_info
    name = fn.name
    checks = [jax.export.DisabledSafetyCheck.custom_call(target) for target in _OWN_CALLS]
    with _explaining(name):
        exported = jax.export.export(jitted, disabled_checks=checks)(key, *args, **kwargs)
    kind: KeyUse = "none" if key is None else "optional"
    if kind == "optional" and 0 in exported.module_kept_var_idx:
        kind = "required"
    donated, names = _donated(info[0][1:], info[1])
    states = tuple(key.state) if isinstance(key, Stateful) else ()
    header = Calling(name, "decorated", kind, states, donated, names)
    return Exported(header, exported)


def _of_rejitted(fn: Rejitted) -> Exported:
    if called_back(fn.module):
        raise ValueError(
            f"{fn.name} has host callbacks ({', '.join(called_back(fn.module))}): they are Python "
            "functions of this process, which no file can keep"
        )
    with _explaining(fn.name):
        exported = _compat.export_lowered(fn.lowered, fn.name, _OWN_CALLS)
    (args, kwargs, _), _ = fn.lowered.args_info
    donated, names = _donated(args, kwargs)
    interface = fn.interface
    header = Calling(fn.name, "rejitted", interface.key, tuple(interface.states), donated, names)
    return Exported(header, exported)


@contextlib.contextmanager
def _explaining(name: str, do: str = "keep") -> Generator[None]:
    """A context that says of which function ``jax.export`` complains."""
    try:
        yield
    except ImportError as error:
        if "flatbuffers" not in str(error):
            raise
        raise ImportError(
            "files of exported programs need the package flatbuffers: pip install srjit[export]"
        ) from error
    except (ValueError, NotImplementedError) as error:
        why = str(error)
        if "callback" in why:
            why = (
                "it has host callbacks (jax.debug.print, pure_callback, io_callback): they are "
                "Python functions of this process, which no file can keep"
            )
        raise ValueError(f"jax.export cannot {do} {name}: {why}") from error


def _donated(args: Any, kwargs: Any) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The arguments that are donated whole: by position, and by name."""

    def whole(info: Any) -> bool:
        leaves = jax.tree.leaves(info)
        return bool(leaves) and all(leaf.donated for leaf in leaves)

    return (
        tuple(i for i, info in enumerate(args) if whole(info)),
        tuple(name for name, info in kwargs.items() if whole(info)),
    )


# --------------------------------------------------------------------------------------- programs


@dataclasses.dataclass(frozen=True)
class Calling:
    """The calling convention of an exported program, which ``jax.export`` does not keep.

    Attributes:
      name: of the function, for messages.
      origin: ``decorated`` or ``rejitted``: where in its arguments the key is.
      key: whether it takes ``sr_key``.
      states: names of the histories in ``sr_state``, in order.
      donated, donated_names: positions and names of the arguments that are donated.
    """

    name: str
    origin: Literal["decorated", "rejitted"]
    key: KeyUse
    states: tuple[str, ...]
    donated: tuple[int, ...]
    donated_names: tuple[str, ...]

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Calling:
        """Reads the fields from a file's header.

        Raises:
          ValueError: it says something else.
        """
        hints = typing.get_type_hints(cls)
        given: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()
        }
        wrong = [n for n in (hints | given) if not _is_a(given.get(n), hints.get(n))]
        if wrong:
            shown = {n: fields.get(n) for n in wrong}
            raise ValueError(f"its header is not one of srjit: {shown}")
        return cls(**given)


def _is_a(value: Any, hint: Any) -> bool:
    """True if a value is of a type of ``Calling``'s attributes."""
    if typing.get_origin(hint) is tuple:
        return isinstance(value, tuple) and all(type(v) is hint.__args__[0] for v in value)
    if typing.get_origin(hint) is Literal:
        return any(type(value) is str and value == known for known in hint.__args__)
    return hint is not None and type(value) is hint


class Exported:
    """A rewritten program that needs no code; made by ``export`` and ``load``.

    Attributes:
      name: what messages call it.
      exported: the ``jax.export.Exported`` inside, with its ``platforms``, ``nr_devices``,
        ``in_avals`` and ``mlir_module()``.
    """

    def __init__(self, header: Calling, exported: Any) -> None:
        self._header, self.exported = header, exported
        self.name = self.__name__ = self.__qualname__ = header.name

    def __repr__(self) -> str:
        where = ", ".join(self.exported.platforms)
        return f"<srjit.Exported {self.name}: for {self.exported.nr_devices} device(s), {where}>"

    def __call__(self, *args: Any, sr_key: Any = None, sr_state: Any = None, **kwargs: Any) -> Any:
        """Calls the program, also inside of other transformations.

        A program for several devices takes arrays that are on as many.

        Args:
          *args, **kwargs: as of the function that was exported, without its static arguments.
          sr_key: a typed PRNG key or an integer step, if the program rounds stochastically.
          sr_state: for delayed scales, what ``init_state`` or the last call returned.

        Returns:
          What the function returned; with ``sr_state``, a pair of that and the new state.

        Raises:
          TypeError: ``sr_key`` or ``sr_state`` is missing, or there is no need for it.
          ValueError: the arguments, or ``sr_state``, are not those that the program was exported
            for.
        """
        header = self._header
        self._interface.check(self.name, sr_key is not None, sr_state)
        words = None
        if header.key != "none":
            warn_of_repetition(self.name, sr_key)
            words = words_of(0 if sr_key is None else sr_key, (args, kwargs))
        if header.origin == "rejitted":
            given: dict[str, Any] = sr_state or {}
            states = [given[name] for name in header.states]
            head: Any = [*([] if words is None else [words]), *states]
        else:
            head = None if words is None else IfNeeded(Words(words))
            head = Stateful(head, sr_state) if header.states else head
        return self._jit(head, *args, **kwargs)

    @functools.cached_property
    def _jit(self) -> Any:
        call = self.exported.call

        def run(head: Any, /, *args: Any, **kwargs: Any) -> Any:
            if self._header.origin == "decorated":
                return call(head, *args, **kwargs)
            out, states = call(args, kwargs, head)
            names = self._header.states
            return (out, dict(zip(names, states, strict=True))) if names else out

        run.__name__ = self.name
        return jax.jit(
            run,
            donate_argnums=tuple(1 + i for i in self._header.donated),
            donate_argnames=self._header.donated_names,
        )

    @functools.cached_property
    def _interface(self) -> Interface:
        names = self._header.states
        tree: Any = jax.tree.unflatten(self.exported.in_tree, self.exported.in_avals)
        args = tree[0]
        avals: Any = ()
        if names:
            decorated = self._header.origin == "decorated"
            avals = args[0].state.values() if decorated else args[2][-len(names) :]
        shapes = {n: tuple(aval.shape) for n, aval in zip(names, avals, strict=True)}
        return Interface(self._header.key, shapes)

    def init_state(self) -> dict[str, jax.Array]:
        """The state of delayed scales before the first step; empty if there are none."""
        return self._interface.init_state()

    def as_text(self) -> str:
        """The module, as text of StableHLO."""
        return str(self.exported.mlir_module())

    # ------------------------------------------------------------------------------------- files

    def serialize(self) -> bytes:
        """The program as bytes: a zip archive of what ``jax.export`` writes, a header, a digest.

        Raises:
          ValueError: a pytree type among its arguments or results is not known to ``jax.export``.
        """
        with _explaining(self.name):
            program = self.exported.serialize(vjp_order=0)
        return program_file.written(dataclasses.asdict(self._header), bytes(program))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes ``serialize()`` to a file; one that is there already is replaced, or left whole.

        Raises:
          OSError: it cannot be written.
        """
        replace_file(Path(path), self.serialize())


def load(source: str | os.PathLike[str] | bytes) -> Exported:
    """A program that ``export`` made, from its file or its bytes.

    Nothing but JAX and srjit is needed, and, if the arguments are of pytree types of one's own,
    those types, registered as in the process that exported it.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is no such program, is damaged, or was written by another version of srjit; or
        a pytree type is not registered. The message names the file.
    """
    what = "the bytes" if isinstance(source, bytes) else os.fspath(source)
    if isinstance(source, bytes):
        content = source
    elif Path(source).is_dir():
        raise ValueError(f"{what}: a folder, and not a program that srjit.export wrote")
    else:
        content = Path(source).read_bytes()
    fields, program = program_file.read(content, what)
    try:
        header = Calling.of(fields)
        with _explaining(header.name, "read"):
            exported = jax.export.deserialize(bytearray(program))
    except ImportError:
        raise
    except Exception as error:  # what is no flatbuffer raises a dozen types
        raise ValueError(f"{what}: {error}") from error
    return Exported(header, exported)
