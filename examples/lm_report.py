"""A finished comparison: a table, a plot and a JSON file with all numbers."""

import json
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TWIN = "bf16"
NEAREST, NO_HADAMARD, ROWS = ":nearest", ":no-hadamard", ":rows"  # variants of a recipe
MOMENTS = ":moments"
RESIDUALS = ":residuals"
_LABELS = {
    NEAREST: ", nearest grads", NO_HADAMARD: ", no Hadamard", ROWS: ", 1-D weight scales",
    MOMENTS: ", 8-bit moments", RESIDUALS: ", 8-bit residuals",
}  # fmt: skip
_DASHES = {NEAREST: "--", NO_HADAMARD: ":", ROWS: "-."}

Runs = dict[str, list[dict[str, Any]]]  # recipe name -> one result a seed


def summarize(runs: Runs) -> dict[str, dict[str, float | None]]:
    """Means over seeds for each recipe.

    Returns:
        For each recipe: `val_loss` (nats per byte), `gap_percent` to the bf16 twin's loss (None
        without one), `seconds_per_step` (median) and `seconds_to_compile` (first call).
    """
    val_loss = {
        name: _mean(final_loss(result) for result in results) for name, results in runs.items()
    }
    twin = val_loss.get(TWIN)
    return {
        name: {
            "val_loss": val_loss[name],
            "gap_percent": None if twin is None else 100 * (val_loss[name] / twin - 1),
            "seconds_per_step": _mean(_step_seconds(r) for r in results),
            "seconds_to_compile": _mean(r["compile_seconds"] for r in results),
        }
        for name, results in runs.items()
    }


def final_loss(result: dict[str, Any]) -> float:
    """The validation loss after a run's last step."""
    return result["val_loss"][-1][1]


def table(summary: dict[str, dict[str, float | None]]) -> str:
    """The summary as text for a terminal."""
    lines = [f"{'recipe':<26}{'val loss':>10}{'gap to bf16':>13}{'s/step':>9}{'compile s':>11}"]
    for name, row in summary.items():
        gap = "-" if row["gap_percent"] is None else f"{row['gap_percent']:+.2f} %"
        lines.append(
            f"{describe(name):<26}{row['val_loss']:>10.4f}{gap:>13}"
            f"{row['seconds_per_step']:>9.3f}{row['seconds_to_compile']:>11.1f}"
        )
    return "\n".join(lines)


def markdown(runs: Runs) -> str:
    """Validation losses as a table in Markdown, with the gap to the bf16 twin of each seed."""
    lines = [
        "| recipe | validation loss | against bf16 | of each seed |",
        "| --- | --- | --- | --- |",
    ]
    for name, results in runs.items():
        losses = [final_loss(result) for result in results]
        twins = [final_loss(result) for result in runs.get(TWIN, [])]
        gaps = [100 * (loss / twin - 1) for loss, twin in zip(losses, twins, strict=False)]
        cells = [describe(name), f"{_mean(losses):.4f}", "", ""]
        if name != TWIN and gaps:
            cells[2:] = f"{_mean(gaps):+.2f} %", ", ".join(f"{gap:+.2f}" for gap in gaps)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def describe(name: str) -> str:
    """A recipe's name for people."""
    if name == f"bf16-sr{NEAREST}":
        return f"{base_of(name)}, nearest updates"
    return base_of(name) + _LABELS.get(_variant(name), "")


def base_of(name: str) -> str:
    """The recipe that a variant is of, or the recipe itself."""
    return name.partition(":")[0]


def write_json(path: Path, settings: dict[str, Any], runs: Runs) -> None:
    """Writes the settings, the summary and every loss of every run."""
    content = {"settings": settings, "summary": summarize(runs), "runs": runs}
    path.write_text(json.dumps(content, indent=1) + "\n")


def write_plot(path: Path, runs: Runs) -> None:
    """Draws the training losses and, beside the bf16 twin, the gaps in validation loss.

    Variants of a recipe are dashed, in its colour.
    """
    figure, axes = plt.subplots(1, 1 + (TWIN in runs), figsize=(12, 5), squeeze=False)
    colours = {base: f"C{i}" for i, base in enumerate(dict.fromkeys(map(base_of, runs)))}
    for name, results in runs.items():
        style = {"color": colours[base_of(name)], "ls": _DASHES.get(_variant(name), "-")}
        _plot_training(axes[0, 0], name, results, style)
        if TWIN in runs:
            _plot_gap(axes[0, 1], name, results, runs[TWIN], style)
    for axis in axes.flat:
        axis.grid(alpha=0.3)
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _plot_training(axis: Any, name: str, results: list[dict[str, Any]], style: dict) -> None:
    losses = np.mean([result["train_loss"] for result in results], axis=0)
    width = max(1, len(losses) // 20)
    smooth = np.convolve(losses, np.full(width, 1 / width), mode="valid")
    axis.plot(np.arange(width, len(losses) + 1), smooth, label=describe(name), **style)
    axis.set(xlabel="step", ylabel=f"training loss, nats/byte (mean of {width} steps)")


def _plot_gap(axis: Any, name: str, results: list, twins: list, style: dict) -> None:
    steps, losses = _validation(results)
    _, twin_losses = _validation(twins)
    axis.plot(
        steps, 100 * (losses / twin_losses - 1), marker="o", ms=3, label=describe(name), **style
    )
    axis.set(xlabel="step", ylabel=f"validation loss above {TWIN}'s, %")


def _validation(results: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    steps, losses = np.mean([result["val_loss"] for result in results], axis=0).T
    return steps, losses


def _step_seconds(result: dict[str, Any]) -> float:
    return float(np.median(result["step_seconds"] or [result["compile_seconds"]]))


def _variant(name: str) -> str:
    return name.removeprefix(base_of(name))


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))
