"""Eight CPU devices for every test, whatever hardware is attached."""

import os

import hypothesis

# XLA and JAX read these once, so they have to be there before any test imports jax.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
_DEVICES = "--xla_force_host_platform_device_count"
if _DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}=8".strip()

# The first example of a property also pays for compilation: time limits per example mean nothing.
hypothesis.settings.register_profile("srjit", deadline=None)
hypothesis.settings.load_profile("srjit")
