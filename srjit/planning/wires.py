"""Gradients of weights whose parts devices send as codes: which these are, and what that costs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import jax.numpy as jnp

from srjit.choices import Wire
from srjit.numerics.formats import get_format
from srjit.planning.plan import Settings
from srjit.planning.roles import Classified
from srjit.planning.site import Site, SitePlan, listed
from srjit.targets.wire import FORMATS

_MIB = 2**20


def sent_as(site: Site, settings: Settings) -> Wire | None:
    """The dtype in which parts of a product are sent; None: the product's own."""
    is_sent = site.role == "wgrad" and site.op == "dot_general" and settings.mode == "train"
    return settings.recipe.wire if is_sent else None


def notes_of(
    classified: Sequence[Classified], rows: Sequence[SitePlan], settings: Settings
) -> Iterator[str]:
    """Yields what a report says of parts that are sent as codes.

    Args:
      classified: the program's products with their roles.
      rows: what becomes of them.
      settings: what a user chose.
    """
    wire = settings.recipe.wire
    if wire is None or settings.mode != "train":
        return
    storage = get_format(FORMATS[wire]).storage
    gradients = [
        (c, site)
        for c, row in zip(classified, rows, strict=True)
        for site in row.with_gradients
        if site.role == "wgrad"
    ]
    sent = [
        row
        for c, row in zip(classified, rows, strict=True)
        if row.status != "kept" and sent_as(row.site, settings) and not c.occurrence.scope.manual
    ]
    if sent:
        counts = [math.prod(site.out_shape) * site.trips for site in sent]
        own = sum(n * jnp.dtype(site.dtype).itemsize for n, site in zip(counts, sent, strict=True))
        coded = sum(counts) * storage.dtype.itemsize
        error = 2.0**-storage.element.significant_bits
        yield (
            f"wire = {wire!r}: where devices have parts of the gradients of {len(sent)} "
            f"weights, {coded / _MIB:.4g} MiB of codes are sent in place of {own / _MIB:.4g} MiB; "
            f"unbiased, with a standard deviation of at most {error:.1%} of each part, and of the "
            "sum once more where every device gets all of it"
        )
    others = dict.fromkeys(str(c.number) for c, s in gradients if all(s is not t for t in sent))
    if others:
        yield (
            f"wire = {wire!r} is not for sites {listed(list(others), 8)}: gradients that "
            "are not quantized, are no matrix products, are taken outside of the decorated "
            "function or are added by the program itself, inside of shard_map, are not sent as "
            "codes"
        )
