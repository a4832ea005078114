"""Eight CPU devices for every test, whatever hardware is attached; nightly tests on demand."""

import os

import hypothesis
import pytest

# XLA and JAX read these once, so they have to be there before any test imports jax.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_DEVICES = "--xla_force_host_platform_device_count"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=8".strip()

# The first example of a property also pays for compilation: time limits per example mean nothing.
hypothesis.settings.register_profile("srjit", deadline=None)
hypothesis.settings.load_profile("srjit")

_NIGHTLY = os.environ.get("SRJIT_NIGHTLY", "0") != "0"


def _compile_quickly() -> None:
    """Most of the time of a test is XLA's compiler: no number may depend on what it optimizes."""
    import jax

    flags = ["--xla_backend_optimization_level=0"]
    if jax.__version_info__ < (0, 11):
        flags.append("--xla_cpu_use_fusion_emitters=false")
    before = os.environ["XLA_FLAGS"]
    os.environ["XLA_FLAGS"] = " ".join([before, *flags])
    jax.devices()
    os.environ["XLA_FLAGS"] = before  # not for compilers of other chips, nor for other processes


if not _NIGHTLY:
    _compile_quickly()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves nightly tests out, and says how many, unless SRJIT_NIGHTLY is set."""
    if _NIGHTLY:
        return
    left_out = [item for item in items if item.get_closest_marker("nightly")]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in set(left_out)]
