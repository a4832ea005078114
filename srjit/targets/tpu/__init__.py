"""TPUs as targets."""

import functools

from srjit.targets.target import Target
from srjit.targets.tpu import groups, products, quantize
from srjit.targets.tpu.chips import CHIPS, Chip


def target_of(chip: Chip) -> Target:
    """A TPU of the table as a target."""
    return Target(
        name=chip.name,
        kinds=chip.kinds,
        recipe=chip.recipe,
        multiply=functools.partial(products.multiply, chip),
        multiply_groups=functools.partial(groups.multiply, chip),
        quantize=functools.partial(quantize.quantize, chip),
        quantize_groups=functools.partial(quantize.quantize_groups, chip),
        native=functools.partial(products.is_native, chip),
        hindrance=functools.partial(products.hindrance, chip),
        turns=functools.partial(products.turns, chip),
        compiler=chip.compiler,
        interconnect=chip.interconnect,
        estimates=chip,
    )


TARGETS = tuple(map(target_of, CHIPS.values()))
