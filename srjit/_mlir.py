"""MLIR's bindings, without JAX.

JAX offers them publicly as ``jax.extend.mlir``, which imports all of JAX: 0.6 s, where what is
under it takes 0.2 s. A command that people run on one small file after another cannot pay that. The
objects are the same, so that modules from ``jax.jit(f).lower()`` can be given to any pass. So this
is the one file beside ``_compat.py`` with private imports: that one imports JAX.
"""

from __future__ import annotations

import os
from typing import Any

# As JAX does when it is imported first: jaxlib would write its devices to standard error.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")

from jaxlib.mlir import ir as ir
from jaxlib.mlir import passmanager as passmanager
from jaxlib.mlir._mlir_libs import _jax_mlir_ext
from jaxlib.mlir.dialects import chlo, func, mhlo, mpmd, sdy, stablehlo

__all__ = [
    "chlo", "func", "inlined_func_call", "ir", "new_context", "new_kernel_context", "passmanager",
    "sdy", "stablehlo",
]  # fmt: skip

# The bindings register those of MLIR and of Shardy by themselves.
stablehlo.register_stablehlo_passes()
mhlo.register_mhlo_passes()

# Inlines a call at the insertion point and joins locations; MLIR's own `inline` does nothing here.
inlined_func_call: Any = _jax_mlir_ext.inlined_func_call


def new_context() -> ir.Context:
    """A context that knows what JAX's own does, without threads.

    MLIR aborts the process when it prints IR at module scope with threads, and Python passes hold
    the interpreter's lock anyway.
    """
    registry = ir.DialectRegistry()
    _jax_mlir_ext.register_dialects(registry)
    context = ir.Context()
    context.enable_multithreading(False)
    context.append_dialect_registry(registry)
    context.load_all_available_dialects()
    sdy.register_dialect(context)
    mpmd.register_dialect(context)
    mhlo.register_mhlo_dialect(context)
    chlo.register_dialect(context)
    stablehlo.register_dialect(context)
    return context


def new_kernel_context() -> ir.Context:
    """A context that reads the kernels of TPUs as their calls have them.

    Their operations have names of a dialect of their own, for which there are no bindings; their
    attributes are those of Mosaic.
    """
    from jaxlib.mosaic.python import tpu  # only who reads kernels needs it

    context = new_context()
    context.allow_unregistered_dialects = True
    tpu.register_dialect(context)
    return context
