"""What each kernel of a program would take on a TPU, by two models that are not XLA's.

    python benchmarks/_tpu_kernel_estimates.py CHIP PROGRAM RECIPE

Prints a JSON list. Every distinct kernel is compiled by itself, with the compiler's static profile
on, which whole programs do not survive: so tpu_cycles.py runs this as a process of its own.
``profile`` is that estimate of the kernel's schedule, in cycles; ``bytes`` the cycles in which
the memory moves its operands and results once, at its peak.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Iterator
from typing import Any

import _tpu_profile as profile  # isort: skip  (before JAX)

import jax
import jax.numpy as jnp

import _tpu_programs as programs
import srjit
from _tpu_recipes import recipe_of
from srjit.planning.provenance import REWRITTEN
from srjit.targets.target import WITHOUT_HISTORY


def kernels_of(jaxpr: Any, times: int = 1) -> Iterator[tuple[Any, Any, int]]:
    """Kernels of a jaxpr that most steps run: equation, function, and how often it runs."""
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if WITHOUT_HISTORY in str(eqn.source_info.name_stack):
            continue
        if name == "srjit_kernel":
            avals = [v.aval for v in eqn.invars]
            inside = jax.make_jaxpr(eqn.params["kernel"])(*avals).jaxpr
            if any(e.primitive.name == "pallas_call" for e in inside.eqns):
                yield eqn, eqn.params["kernel"], times
            else:  # a product, of copies that kernels make
                yield from kernels_of(inside, times)
        elif name == "pallas_call":
            yield eqn, lambda *args, eqn=eqn: eqn.primitive.bind(*args, **eqn.params), times
        elif name in REWRITTEN:
            avals = [v.aval for v in eqn.invars]
            inside = jax.make_jaxpr(functools.partial(eqn.primitive.impl, **eqn.params))(*avals)
            yield from kernels_of(inside.jaxpr, times)
        else:
            inside = times * eqn.params.get("length", 1) if name == "scan" else times
            for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
                if _is_jaxpr(value):
                    yield from kernels_of(getattr(value, "jaxpr", value), inside)


def _is_jaxpr(x: Any) -> bool:
    return hasattr(x, "eqns")


def estimates(chip: str, name: str, recipe: str) -> list[dict[str, Any]]:
    """Of the kernels of one of the programs, rewritten."""
    step, args = programs.PROGRAMS[name]()
    rewritten = srjit.transform(step, recipe=recipe_of(chip, recipe), target=chip)
    key = jax.ShapeDtypeStruct((), jnp.uint32)
    whole = srjit.srjit(step, recipe=recipe_of(chip, recipe), target=chip)
    state = whole.init_state(*args) or None

    def keyed(key: Any, *args: Any) -> Any:
        return rewritten(*args, sr_key=key, sr_state=state)

    closed = jax.make_jaxpr(keyed)(key, *args)
    each = profile.cycles_per_byte(chip)
    known: dict[str, int | None] = {}
    found: list[dict[str, Any]] = []
    for eqn, fun, times in kernels_of(closed.jaxpr):
        avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
        outs = [v.aval for v in eqn.outvars]
        key = f"{eqn.params.get('kernel', eqn.params.get('name'))} {avals} {outs}"
        if key not in known:
            known[key] = profile.profile_of(chip, fun, *avals)
        moved = sum(x.size * x.dtype.itemsize for x in (*avals, *outs))
        is_own = eqn.primitive.name != "srjit_kernel"
        entry = {"times": times, "profile": known[key], "bytes": moved * each}
        found.append({**entry, "shape": avals[0].shape, "programs_own": is_own})
    return found


if __name__ == "__main__":
    print(json.dumps(estimates(*sys.argv[1:4])))
