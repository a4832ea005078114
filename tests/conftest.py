"""Eight CPU devices for every test, whatever hardware is attached; nightly tests on demand."""

import os
from importlib.metadata import version

import hypothesis
import pytest

from crossing import parted

# XLA and JAX read these once, so they have to be there before any test imports jax.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_DEVICES = "--xla_force_host_platform_device_count"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=8".strip()

# The first example of a property also pays for compilation: time limits per example mean nothing.
hypothesis.settings.register_profile("srjit", deadline=None)
hypothesis.settings.load_profile("srjit")

# One case of each test, where another interpreter runs them all.
_ONCE = os.environ.get("SRJIT_ONE_CASE", "0") != "0"
_NIGHTLY = os.environ.get("SRJIT_NIGHTLY", "0") != "0"
# Programs compile as they do for users: nightly, and in `make test-compiled`.
_AS_USERS = _NIGHTLY or os.environ.get("SRJIT_AS_USERS_COMPILE", "0") != "0"

# Most of the time of a test is the compiler, and most of the compiler's is optimization.
_COMPILER_FLAGS = (
    ""
    if _AS_USERS
    else "--xla_backend_optimization_level=0 --xla_cpu_parallel_codegen_split_count=1"
)
# Where XLA still has a choice of them, fusion emitters are what costs most of the rest.
_HAS_EMITTERS = _AS_USERS or tuple(map(int, version("jax").split(".")[:2])) >= (0, 11)
if not _HAS_EMITTERS:
    _COMPILER_FLAGS += " --xla_cpu_use_fusion_emitters=false"


def _compile_quickly() -> None:
    import jax

    before = os.environ["XLA_FLAGS"]
    os.environ["XLA_FLAGS"] = f"{before} {_COMPILER_FLAGS}"
    jax.devices()
    os.environ["XLA_FLAGS"] = before  # not for compilers of other chips, nor for other processes


if _COMPILER_FLAGS:
    _compile_quickly()


@pytest.fixture
def compiler_flags() -> str:
    """What another process has as XLA_FLAGS, if it is to make of a program what this one does."""
    return _COMPILER_FLAGS


@pytest.fixture
def fusion_emitters() -> None:
    """Without them XLA rounds what it fuses otherwise: the same inside another program differs."""
    if not _HAS_EMITTERS:
        pytest.skip(
            "compiled without fusion emitters: runs in `make test-compiled`, or with a newer JAX"
        )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves to the night what is marked so, and says how many tests; see ``crossing.parted``."""
    kept, left_out = parted(items, _NIGHTLY, _ONCE)
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in left_out])
    items[:] = kept
