"""Numbers in order, as a line of text and as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence

_BARS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float], width: int = 16) -> str:
    """Returns a line of text that shows some numbers in order, on a logarithmic scale."""
    logs = [math.log(v) if 0 < v < math.inf else math.nan for v in thinned(values, width)]
    known = [v for v in logs if not math.isnan(v)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    size = (high - low) or 1.0
    return "".join(" " if math.isnan(v) else _BARS[min(7, int(8 * (v - low) / size))] for v in logs)


def thinned(values: Sequence[float], count: int) -> list[float]:
    """Returns at most ``count`` of some numbers, at equal distances, the last among them."""
    if len(values) <= count:
        return list(values)
    return [values[(i + 1) * len(values) // count - 1] for i in range(count)]


def plot(values: Sequence[float], width: int = 640, height: int = 120) -> str:
    """Returns an SVG picture of some numbers in order, on a logarithmic scale."""
    points = [(i, math.log10(v)) for i, v in enumerate(thinned(values, width)) if 0 < v < math.inf]
    if not points:
        return "<p>nothing finite</p>"
    low, high = min(y for _, y in points), max(y for _, y in points)
    across, up = max(points[-1][0], 1), (high - low) or 1.0
    line = " ".join(
        f"{40 + (width - 50) * x / across:.1f},{10 + (height - 20) * (high - y) / up:.1f}"
        for x, y in points
    )
    return (
        f'<svg width="{width}" height="{height}" role="img">'
        f'<text x="0" y="14" font-size="10">{10**high:.1e}</text>'
        f'<text x="0" y="{height - 4}" font-size="10">{10**low:.1e}</text>'
        f'<polyline fill="none" stroke="#27c" points="{line}"/></svg>'
    )
