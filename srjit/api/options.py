"""The options of ``srjit``: their one description, and what they come to for a function."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import typing
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, ParamSpec, Protocol, TypeVar, cast, overload

import jax

from srjit import targets
from srjit.calling.signature import name_of, parameters_of
from srjit.choices import Layer, Quantizing, unknown_name
from srjit.diagnostics.watch.stream import Record
from srjit.planning.plan import Settings
from srjit.planning.planner import recipe_of
from srjit.recipes import Recipe
from srjit.report.dump import VARIABLE, Dump
from srjit.targets import Target


class _NotGiven:
    def __repr__(self) -> str:
        return "NOT_GIVEN"

    __reduce__ = __repr__  # one object, after pickling too


NOT_GIVEN: Any = _NotGiven()  # None means something to jax.jit


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformOptions(Quantizing):
    """Options for rewriting the matrix multiplications of a function.

    Attributes:
      target: a name (``srjit.targets.names()``) or a Target; ``auto`` is the attached device's.
      params_argnums: positions of the arguments whose arrays are parameters. ``auto``: what the
        function updates or differentiates, wherever it stands, and what is frozen beside it; if
        nothing is differentiated inside, the first argument with floats (see docs/parameters.md).
      params_argnames: their names, in place of positions or beside them.
      dump_to: a folder for the program after every stage; None is the folder that
        ``SRJIT_DUMP_TO`` names when ``fun`` is decorated, and an empty string none. A folder that
        cannot be written to is an OSError at the call that would write.
    """

    recipe: str | os.PathLike[str] | Recipe = "auto"
    target: str | Target = "auto"
    params_argnums: int | Sequence[int] | Literal["auto"] = "auto"
    params_argnames: str | Iterable[str] | None = None
    dump_to: str | os.PathLike[str] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(TransformOptions):
    """Options for rewriting a function and jitting it.

    Attributes:
      layer: what is rewritten: the traced function (``jaxpr``), or what JAX lowers it to
        (``stablehlo``), by the passes of ``srjit.passes``. Numbers are the same; what is rewritten
        after lowering can be called inside another ``jax.jit``, but not differentiated or batched.
      key: a base key, for calls without ``sr_key``: the wrapper counts its calls and folds the
        count in.
      watch: a file that gets a JSON object a line for every gradient that is quantized, in every
        step: its norm and the noise's, what nearest rounding sends to zero, what is saturated,
        amax (``srjit.diagnostics.watch.stream.Record``). Or a function of such a record, such as
        ``srjit.TensorBoard(folder)``. Results stay as they are; ``srjit watch FILE`` draws it.
      in_shardings, out_shardings, device, backend, inline, compiler_options: as of ``jax.jit``.
      static_argnums, static_argnames, donate_argnums, donate_argnames, keep_unused: as of
        ``jax.jit``, in terms of fun's own arguments.
    """

    layer: Layer = "jaxpr"
    key: jax.Array | int | None = None
    watch: str | os.PathLike[str] | Callable[[Record], Any] | None = None
    in_shardings: Any = NOT_GIVEN
    out_shardings: Any = NOT_GIVEN
    static_argnums: int | Sequence[int] | None = NOT_GIVEN
    static_argnames: str | Iterable[str] | None = NOT_GIVEN
    donate_argnums: int | Sequence[int] | None = NOT_GIVEN
    donate_argnames: str | Iterable[str] | None = NOT_GIVEN
    keep_unused: bool = NOT_GIVEN
    device: Any = NOT_GIVEN
    backend: str | None = NOT_GIVEN
    inline: Any = NOT_GIVEN
    compiler_options: dict[str, Any] | None = NOT_GIVEN

    @property
    def jit_options(self) -> dict[str, Any]:
        """The options of ``jax.jit`` that were given."""
        given = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {n: value for n, value in given.items() if n in JIT and value is not NOT_GIVEN}

    def alone(self, **changed: Any) -> Options:
        """Returns the options without key, watch and dump, and with some changed."""
        return dataclasses.replace(self, **{"key": None, "watch": None, "dump_to": "", **changed})


UNDONATED = {"donate_argnums": NOT_GIVEN, "donate_argnames": NOT_GIVEN}
JIT = frozenset(f.name for f in dataclasses.fields(Options) if f.default is NOT_GIVEN)

# ------------------------------------------------------------------------- what they come to


class Chosen(NamedTuple):
    """Arguments that a user says are parameters.

    Attributes:
      numbers: positions; not negative where their number is known.
      names: names.
    """

    numbers: tuple[int, ...]
    names: tuple[str, ...]

    def __str__(self) -> str:
        given = (
            ("params_argnums", self.numbers),
            ("params_argnames", self.names),
        )
        return ", ".join(f"{option}={value}" for option, value in given if value) or "none"


@dataclasses.dataclass(frozen=True)
class Resolved:
    """Options of one function, with all that their names stand for.

    Attributes:
      settings: the recipe, the target, mode and generator, of which plans are made.
      parameters: positions and names of the arguments that are parameters, as ``Chosen``; None:
        what the program tells.
      layer: as of ``Options``.
      strict: as of ``Quantizing``.
      dump: writes the program after every stage.
    """

    settings: Settings
    parameters: Chosen | None
    layer: Layer
    strict: bool
    dump: Dump | None

    @classmethod
    def of(cls, fun: Callable[..., Any], given: TransformOptions) -> Resolved:
        """Checks options, and finds what their names stand for.

        Raises:
          ValueError: unknown names (the nearest are listed), params_argnums out of range, or
            ``fun`` has a parameter called ``sr_key``.
          TypeError: ``fun`` is no function, or an option is of a wrong type.
        """
        _check_function(fun)
        for name, hint in typing.get_type_hints(type(given)).items():
            known = typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
            if known and getattr(given, name) not in known:
                raise unknown_name(name, getattr(given, name), known)
        target = targets.get(given.target)
        folder = os.environ.get(VARIABLE) if given.dump_to is None else given.dump_to
        return cls(
            Settings(recipe_of(given.recipe, target), target, given.mode, given.rng),
            _chosen(fun, given),
            given.layer if isinstance(given, Options) else "jaxpr",
            given.strict,
            Dump(folder, name_of(fun)) if folder else None,
        )


def _check_function(fun: Callable[..., Any]) -> None:
    if isinstance(fun, (classmethod, staticmethod)):
        kind: str = type(fun).__name__  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
        raise TypeError(f"srjit takes the function itself: write @{kind} above @srjit")
    if not callable(fun):
        raise TypeError(
            f"srjit takes a function first, got {fun!r}; options go by name: "
            "srjit(fun, recipe='int8')"
        )
    if any(p.name == "sr_key" and p.kind is not p.VAR_KEYWORD for p in parameters_of(fun) or ()):
        raise ValueError(
            f"{name_of(fun)} has a parameter called sr_key, which is the keyword that srjit takes "
            "for itself and the function never sees: rename the parameter, or, if the function is "
            "an srjit one already, leave it at that"
        )


def _chosen(fun: Callable[..., Any], given: TransformOptions) -> Chosen | None:
    numbers, names = given.params_argnums, given.params_argnames
    if numbers == "auto" and names is None:
        return None
    single = isinstance(names, str) or not hasattr(names, "__iter__")
    named = _names(fun, () if names is None else (names,) if single else tuple(names))
    return Chosen(() if numbers == "auto" else _positions(fun, numbers), named)


def _names(fun: Callable[..., Any], names: tuple[Any, ...]) -> tuple[str, ...]:
    if not all(isinstance(n, str) for n in names):
        raise TypeError(f"params_argnames is a name or several of them, got {names!r}")
    parameters = parameters_of(fun)
    if parameters is None or any(p.kind is p.VAR_KEYWORD for p in parameters):
        return names
    known = [p.name for p in parameters if p.kind is not p.VAR_POSITIONAL]
    for name in names:
        if name not in known:
            raise unknown_name("params_argnames", name, known)
    return names


def _positions(fun: Callable[..., Any], numbers: int | Sequence[int]) -> tuple[int, ...]:
    given = tuple(numbers) if isinstance(numbers, Sequence) else (numbers,)
    if not all(type(n) is int for n in given):
        raise TypeError(
            f"params_argnums is 'auto', a position or a sequence of them, got {numbers!r}"
        )
    parameters = parameters_of(fun)
    if parameters is None or any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return given
    count = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
    for number in given:
        check_position(fun, number, count, "takes")
    return tuple(n % count for n in given)


def check_position(fun: Callable[..., Any], number: int, count: int, had: str) -> None:
    """Raises a ValueError if there is no such position among ``count`` arguments."""
    if not -count <= number < count:
        raise ValueError(
            f"params_argnums={number} is out of range: {name_of(fun)} {had} {count} positional "
            f"argument{'s' * (count != 1)}"
        )


# --------------------------------------------------------------------------- who takes them

P = ParamSpec("P")
O = TypeVar("O")
R = TypeVar("R", covariant=True)


class Taking(Protocol[P, R]):
    """A function that takes a function and options; without a function, it is a decorator."""

    @overload
    def __call__(
        self, fun: None = None, *args: P.args, **kwargs: P.kwargs
    ) -> Callable[[Callable[..., Any]], R]: ...
    @overload
    def __call__(self, fun: Callable[..., Any], *args: P.args, **kwargs: P.kwargs) -> R: ...


def takes(
    options: Callable[P, O],
) -> Callable[[Callable[[Callable[..., Any], O], R]], Taking[P, R]]:
    """Makes ``make(fun, options)`` take its options by name, with their signature and docs."""
    made: Any = options
    parameters = inspect.signature(options).parameters
    described = [(cls.__doc__ or "").partition("Attributes:\n")[2] for cls in made.__mro__[-2::-1]]
    docs = "\n".join(part.rstrip() for part in described).strip()

    def decorate(make: Callable[[Callable[..., Any], O], R]) -> Taking[P, R]:
        def taking(fun: Callable[..., Any] | None = None, **given: Any) -> Any:
            for name in given:
                if name not in parameters:
                    raise TypeError(str(unknown_name("option", name, parameters)))
            chosen = made(**given)
            return make(fun, chosen) if fun is not None else lambda fun: make(fun, chosen)

        functools.update_wrapper(taking, make)
        del taking.__wrapped__  # type: ignore[attr-defined]  # its signature is another
        first = inspect.Parameter("fun", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None)
        taking.__signature__ = inspect.Signature([first, *parameters.values()])  # type: ignore[attr-defined]
        taking.__doc__ = (make.__doc__ or "").replace("OPTIONS", docs)
        return cast(Any, taking)

    return decorate
