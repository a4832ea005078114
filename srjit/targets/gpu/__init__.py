"""NVIDIA's GPUs as targets."""

import functools

from srjit.targets.gpu import products, quantize
from srjit.targets.gpu.chips import GPUS, Gpu
from srjit.targets.target import Target


def target_of(gpu: Gpu) -> Target:
    """A GPU of the table as a target."""
    return Target(
        name=gpu.name,
        kinds=gpu.kinds or (gpu.name,),
        recipe=gpu.recipe,
        native=functools.partial(products.is_native, gpu),
        multiply=products.multiply,
        quantize=functools.partial(quantize.quantize, gpu),
        quantize_together=functools.partial(quantize.quantize_together, gpu),
        turns=functools.partial(products.turns, gpu),
        noise_bits=functools.partial(quantize.noise_bits, gpu),
        remark=functools.partial(quantize.remark, gpu),
        compiler=gpu.compiler,
        peak=gpu.rate,
        interconnect=gpu.interconnect,
    )


TARGETS = tuple(map(target_of, GPUS.values()))
