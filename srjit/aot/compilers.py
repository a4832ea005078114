"""The devices that a target's compiler compiles for, without them: one function a platform."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import math
import os
import re
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from srjit import targets
from srjit.aot import hlo
from srjit.targets.target import Compiler, Target

_ENVIRONMENTS = {
    # What libtpu reads when it is loaded: neither to look for a TPU of this machine, nor to lock
    # it, nor to ask a metadata server what it is, nor to keep a log.
    "tpu": {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_LOG_DIR": "disabled",
    },
    "cuda": {"JAX_SKIP_CUDA_CONSTRAINTS_CHECK": "1"},
}


class MissingCompilerError(ImportError):
    """The compiler for a target is not installed; the message says how to install it."""


def devices_of(target: Target, count: int = 1) -> Sequence[Any]:
    """Devices to compile for; programs cannot run on them unless they are attached.

    Args:
      target: a target with a compiler.
      count: how many.

    Raises:
      MissingCompilerError: its compiler is not installed.
      ValueError: srjit knows no compiler for it, or the compiler no slice of that many devices.
    """
    compiler = target.compiler
    if compiler is None or compiler.platform not in _PLATFORMS:
        known = [n for n in targets.names() if targets.get(n).compiler]
        raise ValueError(
            f"srjit cannot compile for {target.name} without it yet: it can for {', '.join(known)}"
        )
    return _PLATFORMS[compiler.platform](target.name, compiler, count)


def mesh_of(target: Target, like: Any) -> Mesh:
    """A mesh of devices to compile for.

    Args:
      target: as of ``devices_of``.
      like: sizes of its axes by name, or a Mesh or an AbstractMesh.

    Raises:
      TypeError: ``like`` is neither.
    """
    if isinstance(like, Mapping):
        axes = {str(name): int(size) for name, size in like.items()}
        types = (AxisType.Auto,) * len(axes)
    elif hasattr(like, "axis_names"):
        axes = dict(zip(like.axis_names, like.axis_sizes, strict=True))
        types = like.axis_types
    else:
        raise TypeError(
            f"mesh is sizes by name, such as {{'data': 4}}, a Mesh or an AbstractMesh: got {like!r}"
        )
    devices = devices_of(target, math.prod(axes.values()))
    return jax.make_mesh(tuple(axes.values()), tuple(axes), types, devices=devices)


def optimized(target: Target, lowered: Any) -> tuple[hlo.Module, Any]:
    """Compiles a ``jax.stages.Lowered``: the optimized program, and the memory that it takes."""
    text, assembly, memory = compiled(target, lowered)
    return dataclasses.replace(hlo.read(text), assembly=assembly), memory


def compiled(target: Target, lowered: Any) -> tuple[str, Mapping[str, tuple[str, ...]], Any]:
    """Compiles a ``jax.stages.Lowered``.

    Returns:
      The optimized program as text; the instructions of its kernels that round, as of
      ``hlo.Module``; and what ``jax.stages.Compiled.memory_analysis()`` returns.
    """
    options = dict(target.compiler.options) if target.compiler else {}
    assembly: dict[str, tuple[str, ...]] = {}
    if target.compiler and target.compiler.platform == "cuda":
        with tempfile.TemporaryDirectory(prefix="srjit-aot-") as folder:
            with target.lowering():
                made = lowered.compile(
                    compiler_options={**options, **_ASSEMBLY, "xla_dump_to": folder}
                )
            for path in Path(folder).glob("*.ptx"):
                _note_rounding(path.read_text(encoding="utf-8"), assembly)
        with _silenced():
            text = made.as_text()
    else:
        made, text = _made(target.name, lowered, options)
    return text, assembly, made.memory_analysis()


_ASSEMBLY = {"xla_dump_emitter_re": "ptx"}  # what is dumped beside the module
_ENTRY = re.compile(r"\.entry (\w+?)(?:__\d+)?\(")  # XLA numbers kernels of one name
_ROUNDING = re.compile(r"\bcvt\.r[ns]\.satfinite\.\w+\.f32")


def _note_rounding(ptx: str, found: dict[str, tuple[str, ...]]) -> None:
    """Adds the instructions that round, by the name of the kernel that they are in."""
    _, *parts = _ENTRY.split(ptx)
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        found[name] = tuple(sorted({*found.get(name, ()), *_ROUNDING.findall(body)}))


@contextlib.contextmanager
def _silenced() -> Generator[None]:
    """Discards what libraries write to stderr: it looks as if something had crashed."""
    stderr = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


# Targets whose optimized programs this jaxlib does not understand: it is older than their compiler.
_unreadable: set[str] = set()


def _made(name: str, lowered: Any, options: dict[str, Any]) -> tuple[Any, str]:
    """A program compiled for a target, and its text, from the compiler itself if need be."""
    if name not in _unreadable:
        made = lowered.compile(compiler_options=options)
        try:
            with _silenced():
                return made, made.as_text()
        except jax.errors.JaxRuntimeError:
            _unreadable.add(name)
    with tempfile.TemporaryDirectory(prefix="srjit-aot-") as folder:
        dump = {"xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        made = lowered.compile(compiler_options={**options, **dump})
        # The one that has estimates: they are made while code is generated.
        (path,) = Path(folder).glob("*.after_codegen.txt")
        return made, path.read_text(encoding="utf-8")


def _libtpu(name: str, compiler: Compiler, count: int) -> Sequence[Any]:
    if importlib.util.find_spec("libtpu") is None:
        raise MissingCompilerError(
            f"compiling for {name} needs libtpu, which holds the compiler of TPUs (for Linux on "
            "x86-64, about 0.2 GB): pip install 'srjit[aot]', or libtpu alone"
        )
    return _topology(compiler.platform, _slice(name, compiler, count)).devices


def _cuda(name: str, compiler: Compiler, count: int) -> Sequence[Any]:
    if not any(map(importlib.util.find_spec, _CUDA_PLUGINS)):
        raise MissingCompilerError(
            f"compiling for {name} needs JAX's plugin for CUDA and NVIDIA's compiler (for Linux, "
            "about 0.7 GB): pip install 'srjit[aot]'"
        )
    try:
        topology = _slice(name, compiler, count)
        described = {"target_config": compiler.description, "topology": topology}
        return _topology("cuda", "", **described).devices
    except NotImplementedError as error:  # JAX has looked for its plugins already
        raise MissingCompilerError(
            f"compiling for {name} needs JAX's plugin for CUDA, which was not loaded when JAX "
            "started, since no GPU or not all of CUDA is here: set JAX_PLATFORMS=cpu, or "
            "JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1, before it starts"
        ) from error


def _slice(name: str, compiler: Compiler, count: int) -> str:
    if count not in compiler.topologies:
        sizes = ", ".join(map(str, compiler.topologies))
        raise ValueError(f"srjit compiles for {sizes} devices of {name}, not for {count}")
    return compiler.topologies[count]


_CUDA_PLUGINS = ("jax_cuda13_plugin", "jax_cuda12_plugin")


@functools.cache
def _topology(platform: str, name: str, **description: str) -> Any:
    with _environment(_ENVIRONMENTS[platform]):
        return topologies.get_topology_desc(name, platform, **description)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Generator[None]:
    """The environment with these values where it has none; afterwards, as it was."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]


def _attached(name: str, compiler: Compiler, count: int) -> Sequence[Any]:
    there = jax.devices(compiler.platform)
    if count > len(there):
        raise ValueError(
            f"a mesh of {count} devices, and {len(there)} of {name} here: set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={count} before jax starts"
        )
    return there[:count]


_PLATFORMS: dict[str, Callable[[str, Compiler, int], Sequence[Any]]] = {
    "tpu": _libtpu,
    "cuda": _cuda,
    "cpu": _attached,
}
