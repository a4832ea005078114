"""NVIDIA's GPUs as a table: what XLA's compiler needs to know of one, and what its units can do.

Another GPU is one entry. Peaks as the vendor publishes them, dense, of the boards that go into
servers (SXM), or of workstations' with sums in float32. The rest only sizes what the compiler
makes: of gb200, of which no description was at hand, it is b200's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from jax.sharding import AbstractDevice

from srjit.targets.target import Compiler

# As XLA describes a device (stream_executor/device_description.proto, GpuTargetConfigProto).
_DESCRIPTION = """\
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {chip.shared}
  threads_per_core_limit: {chip.threads}
  core_count: {chip.cores}
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {chip.bandwidth:.0f}
  l2_cache_size: {chip.cache}
  clock_rate_ghz: {chip.clock}
  device_memory_size: {chip.memory}
  shared_memory_per_block_optin: {chip.block_shared}
  cuda_compute_capability {{
    major: {chip.capability[0]} minor: {chip.capability[1]}{chip.features}
  }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
  thread_dim_limit_x: 1024
  thread_dim_limit_y: 1024
  thread_dim_limit_z: 64
  device_vendor: "NVIDIA Corporation"
  device_address_bits: 64
  name: "NVIDIA {chip.label}"
  driver_version: "13.0.0"
  runtime_version: "13.0.0"
  compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
device_description_str: "NVIDIA {chip.label}"
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU.

    Attributes:
      name: what users type.
      kinds: parts of what its driver calls it, in lower case; by default its name.
      label: what its vendor calls it.
      recipe: what ``recipe="auto"`` is there.
      capability: major and minor number of what its instructions are.
      cores: streaming multiprocessors.
      threads, shared, block_shared: of one, at most: threads, and bytes of shared memory for all
        blocks and for one.
      clock: of them, at most, in GHz.
      memory: bytes.
      cache: bytes of its last level.
      bandwidth: bytes a second of its memory, at its peak.
      interconnect: bytes a second that it sends to others: half of what its vendor says of NVLink,
        or of PCIe where it has none.
      operations: a second at its peak, by element type, both operands being of such types.
    """

    name: str
    label: str
    recipe: str
    capability: tuple[int, int]
    cores: int
    clock: float
    memory: int
    cache: int
    bandwidth: float
    interconnect: float
    operations: Mapping[str, float] = dataclasses.field(hash=False)
    kinds: tuple[str, ...] = ()
    threads: int = 2048
    shared: int = 233472
    block_shared: int = 232448

    @property
    def features(self) -> str:
        """XLA's line for the instructions that sm_90a, sm_100a and sm_103a add."""
        return " feature_extension: ACCELERATED_FEATURES" if self.capability[0] < 12 else ""

    @property
    def has_block_scales(self) -> bool:
        """True if its units multiply codes with scales of blocks."""
        return self.capability[0] >= 10

    @property
    def has_stochastic_rounding(self) -> bool:
        """True if it has ``cvt.rs`` to E2M1, E4M3 and E5M2: sm_100a and sm_103a do, and no other.

        PTX ISA, cvt: neither sm_90a nor sm_110a nor sm_120a. What lacks them here lacks ``cvt.rn``
        to E2M1 too: XLA compiles for sm_120, and only sm_120a has it.
        """
        return self.capability in ((10, 0), (10, 3))

    @property
    def compiler(self) -> Compiler:
        """The compiler for it."""
        return Compiler(
            platform="cuda",
            topologies={n: f"1x1x{n}" for n in (1, 4, 8)},
            description=_DESCRIPTION.format(chip=self),
            device=AbstractDevice(f"NVIDIA {self.label}", self.cores, "gpu"),
            # Without the device nothing can be tried out. The libraries' products, since it is
            # they that have the rates that are asked for.
            options={"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False},
        )

    def rate(self, lhs: str, rhs: str) -> float | None:
        """Its speed for two element types, in units of bfloat16's; None: it has none.

        Args:
          lhs, rhs: the types, as HLO calls them.
        """
        if lhs == rhs == "f8e5m2" or _UNITS.get(lhs) != _UNITS.get(rhs):
            return None
        peak = self.operations.get(_UNITS.get(lhs, ""))
        return None if peak is None else peak / self.operations["bf16"]


# What multiplies the types.
_UNITS = {"bf16": "bf16", "f8e4m3fn": "f8", "f8e5m2": "f8", "s8": "s8", "f4e2m1fn": "f4"}
_GIB = 2**30


def _peaks(**operations: float) -> Mapping[str, float]:
    return MappingProxyType(operations)


_H100 = Gpu(
    name="h100",
    label="H100 80GB HBM3",
    recipe="fp8",
    capability=(9, 0),
    cores=132,
    clock=1.98,
    memory=80 * _GIB,
    cache=50 * 2**20,
    bandwidth=3.35e12,
    interconnect=450e9,
    operations=_peaks(bf16=989e12, f8=1979e12, s8=1979e12),
)
_B200 = Gpu(
    name="b200",
    label="B200",
    recipe="nvfp4",
    capability=(10, 0),
    cores=148,
    clock=1.965,
    memory=180 * _GIB,
    cache=126 * 2**20,
    bandwidth=7.7e12,
    interconnect=900e9,
    operations=_peaks(bf16=2250e12, f8=4500e12, s8=4500e12, f4=9000e12),
)
_RTX = Gpu(
    name="rtxpro6000",
    kinds=("rtx pro",),
    label="RTX PRO 6000 Blackwell Server Edition",
    recipe="nvfp4",
    capability=(12, 0),
    cores=188,
    threads=1536,
    shared=131072,
    block_shared=101376,
    clock=2.6,
    memory=96 * _GIB,
    cache=128 * 2**20,
    bandwidth=1.792e12,
    interconnect=64e9,
    operations=_peaks(bf16=503.8e12, f8=1007e12, s8=1007e12, f4=2015e12),
)
GPUS = {
    gpu.name: gpu
    for gpu in (
        _H100,
        dataclasses.replace(_H100, name="h200", label="H200", memory=141 * _GIB, bandwidth=4.8e12),
        _B200,
        dataclasses.replace(
            _B200,
            name="gb200",
            label="GB200",
            memory=186 * _GIB,
            bandwidth=8e12,
            operations=_peaks(bf16=2500e12, f8=5000e12, s8=5000e12, f4=10000e12),
        ),
        dataclasses.replace(
            _B200,
            name="b300",
            label="B300 SXM6 AC",
            capability=(10, 3),
            clock=2.032,
            memory=270 * _GIB,
            bandwidth=8e12,
            # Few units for integers are left.
            operations=_peaks(bf16=2250e12, f8=4500e12, s8=150e12, f4=14000e12),
        ),
        _RTX,
        dataclasses.replace(
            _RTX,
            name="rtx5090",
            kinds=("geforce rtx 50",),
            label="GeForce RTX 5090",
            cores=170,
            clock=2.407,
            memory=32 * _GIB,
            cache=96 * 2**20,
            # Products of 16 and 8 bits are half as fast if their sums are float32.
            operations=_peaks(bf16=209.5e12, f8=419e12, s8=838e12, f4=1676e12),
        ),
    )
}
