"""``recommend``: tries recipes on a training step, and names the cheapest that learns as well."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from srjit import recipes as known_recipes
from srjit.api.bound import BoundMethod, unbound
from srjit.api.function import SrjitFunction, srjit
from srjit.api.options import UNDONATED
from srjit.numerics.formats import get_format
from srjit.recipes import Recipe
from srjit.report.document import Column, Document, Documented, Table, as_json
from srjit.report.progress import progress
from srjit.report.report import Report
from srjit.targets import Target

HIGH_PRECISION = "high precision"

Named = str | os.PathLike[str] | Recipe
# Of a step's number, its arguments and what it returned: the next step's arguments.
Advance = Callable[[int, tuple[Any, ...], Any], tuple[Any, ...]]


@dataclasses.dataclass(frozen=True)
class Trial:
    """One recipe's run.

    Attributes:
      recipe: its name; ``high precision`` is the program as it was.
      loss: the mean of the last quarter of the steps'.
      losses: of every step.
      seconds: of a step, the median, on the machine that this ran on.
      cost: of the products on the target, where high precision is 1: by the bits of those that run
        at their own rate there.
      bits: of the operands, mean over the products, by their operations.
      coverage: the fraction of the operations that is quantized.
    """

    recipe: str
    loss: float
    losses: tuple[float, ...]
    seconds: float
    cost: float
    bits: float
    coverage: float


@dataclasses.dataclass(frozen=True)
class Recommendation(Documented):
    """A recipe, and why.

    Attributes:
      recipe: the recommended one; None: high precision, as no recipe came near it.
      trials: of every recipe, and of high precision, by their losses.
      within: how far from the best recipe's loss one may be, as a fraction.
      tolerance: how far above high precision's loss the best recipe's may be, as a fraction.
      budget: how many steps each ran.
      target: the chip that costs are of.
    """

    recipe: Recipe | None
    trials: tuple[Trial, ...]
    within: float
    tolerance: float
    budget: int
    target: str

    @property
    def reason(self) -> str:
        """Why it is this recipe."""
        if self.recipe is not None:
            return (
                f"{self.recipe.name}: the cheapest on {self.target} of those whose loss after "
                f"{self.budget} steps is within {100 * self.within:.2g} % of the best recipe's"
            )
        losses = {t.recipe: t.loss for t in self.trials if math.isfinite(t.loss)}
        best = next((name for name in losses if name != HIGH_PRECISION), None)
        if best is None:
            return "no recipe has a finite loss: stay in high precision"
        plain = losses[HIGH_PRECISION]
        return (
            f"the best recipe, {best}, has a loss of {losses[best]:.5g} after {self.budget} steps, "
            f"{_gap(losses[best], plain)} to high precision's {plain:.5g}, where "
            f"{100 * self.tolerance:.2g} % may be: stay in high precision"
        )

    def document(self) -> Document:
        """Returns the evidence as data: a row for each recipe."""
        best = self.trials[0].loss
        shown: dict[str, Callable[[Trial], str]] = {
            "loss": lambda t: f"{t.loss:.5g}",
            "to best": lambda t: _gap(t.loss, best),
            "cost": lambda t: f"{t.cost:.2f}",
            "bits": lambda t: f"{t.bits:.1f}",
            "quantized": lambda t: f"{100 * t.coverage:.0f} %",
            "s/step": lambda t: f"{t.seconds:.3g}",
        }
        columns = [Column(name, cell, align="right") for name, cell in shown.items()]
        table = Table([Column("recipe", lambda t: t.recipe), *columns], self.trials)
        return Document(title="recommendation", lead=self.reason, tables=[table])

    def to_json(self) -> str:
        """The evidence as JSON text; infinite and undefined losses are null."""
        trials = [dataclasses.asdict(t) for t in self.trials]
        name = None if self.recipe is None else self.recipe.name
        return as_json({"recipe": name, "reason": self.reason, "trials": trials})


def _gap(loss: float, other: float) -> str:
    """The distance of a loss above another one, either of which may be negative."""
    gap = (loss - other) / abs(other) if other else math.nan
    return f"{100 * gap:+.2f} %"


def recommend(
    fn: Callable[..., Any],
    *args: Any,
    budget: int = 32,
    recipes: Named | Iterable[Named] | None = None,
    target: str | Target | None = None,
    within: float = 0.003,
    tolerance: float = 0.01,
    loss: Callable[[Any], Any] | None = None,
    advance: Advance | None = None,
    seed: int = 0,
    params_argnums: int | Sequence[int] | Literal["auto"] | None = None,
    **kwargs: Any,
) -> Recommendation:
    """Trains with every recipe for some steps, and recommends the cheapest that learns as well.

    If even the best is further from high precision than ``tolerance``, it recommends none.

    All runs start alike and see the same data. One run of each tells recipes apart only where they
    differ by more than what another seed changes.

    Args:
      fn: a training step: by default it returns its new leading arguments (its parameters, the
        optimizer's state), and the loss last. Of one that ``srjit`` decorated, all options count
        but the recipe, the key, ``strict``, ``watch`` and ``dump_to``.
      *args, **kwargs: the first step's arguments, with values; nothing is donated.
      budget: how many steps each recipe runs.
      recipes: names, files or Recipes, or a single one; all built-in ones if None.
      target: the chip to choose for, a name or a Target; ``auto`` is the attached device's. If
        None, the decorator's, or the attached device's. Runs are on the attached device, in the
        target's numbers.
      within: how far from the best recipe's loss the recommended one's may be, as a fraction.
      tolerance: how far above high precision's loss the best recipe's may be, as a fraction.
      loss: of what ``fn`` returns, the loss; by default its last output, a scalar.
      advance: of a step's number, its arguments and what it returned, the next step's positional
        arguments: where data come from. By default what ``fn`` returns replaces the leading
        arguments that have its shapes, and the rest, the data, stays.
      seed: of the noise.
      params_argnums: as of ``srjit``; if None, the decorator's.

    Raises:
      ValueError: budget is no positive integer, within or tolerance is negative, there are no
        recipes or unknown ones, or ``fn`` does not return what its defaults need.
    """
    tried = _recipes_of(recipes)
    is_whole = isinstance(budget, (int, np.integer))  # pyright: ignore[reportUnnecessaryIsInstance]
    for is_wrong, said in (
        (not tried, f"recipes={recipes!r}: name one at least, or leave it out to try all"),
        (not is_whole or budget < 1, f"budget={budget!r}: it is a number of steps, 1 at least"),
        (not within >= 0, f"within={within!r}: it is a fraction of a loss, 0 at least"),
        (not tolerance >= 0, f"tolerance={tolerance!r}: it is a fraction of a loss, 0 at least"),
    ):
        if is_wrong:
            raise ValueError(said)
    head: tuple[Any, ...] = ()  # the object that a method is of
    if isinstance(fn, BoundMethod):
        fn, whole = unbound(fn, args, kwargs)
        head, args = whole[:1], whole[1:]
    decorated = fn if isinstance(fn, SrjitFunction) else srjit(fn)
    own = {"target": target, "params_argnums": params_argnums}
    changed = {name: value for name, value in own.items() if value is not None}
    function = decorated.copy(strict=False, **UNDONATED, **changed)
    fun, options = function.made_of()
    measure = loss or _last_output
    proceed = advance or functools.partial(_replacing, loss is None)

    def run(step: Callable[[int, tuple[Any, ...]], Any]) -> tuple[list[float], float]:
        given, losses, seconds = args, list[float](), list[float]()
        for i in range(budget):
            began = time.perf_counter()
            out = jax.block_until_ready(step(i, (*head, *given)))
            seconds.append(time.perf_counter() - began)
            losses.append(float(measure(out)))
            given = proceed(i, given, out)
        return losses, float(np.median(seconds))

    plain = jax.jit(fun, **options.jit_options)
    trials = {HIGH_PRECISION: _trial(None, *run(lambda _, given: plain(*given, **kwargs)), None)}
    found = {recipe.name: recipe for recipe in tried}
    key = None if options.mode == "inference" else jax.random.key(seed)
    for recipe in progress(tried, "recommend"):
        function = function.copy(recipe=recipe)
        report = function.explain(*head, *args, **kwargs)
        state = function.init_state(*head, *args, **kwargs) if recipe.has_delayed_scales else None
        steps = _steps(function, key, kwargs, state)
        trials[recipe.name] = _trial(recipe, *run(steps), report)
    return _recommended(trials, found, within, tolerance, budget, function.target.name)


def _recipes_of(given: Named | Iterable[Named] | None) -> list[Recipe]:
    if given is None:
        given = known_recipes.names()
    names = [given] if isinstance(given, (str, os.PathLike, Recipe)) else given
    return [known_recipes.get(name) for name in names]


def _steps(
    function: SrjitFunction, key: Any, kwargs: dict[str, Any], state: Any
) -> Callable[[int, tuple[Any, ...]], Any]:
    """Steps of one recipe, with the state of its delayed scales, or None."""

    def step(number: int, args: tuple[Any, ...]) -> Any:
        nonlocal state
        given = None if key is None else jax.random.fold_in(key, number)
        out = function(*args, sr_key=given, sr_state=state, **kwargs)
        if state is not None:
            out, state = out
        return out

    return step


def _trial(
    recipe: Recipe | None, losses: list[float], seconds: float, report: Report | None
) -> Trial:
    last = losses[-max(1, len(losses) // 4) :]
    loss = sum(last) / len(last)
    cost, bits = (1.0, _HIGH) if report is None else _cost(report)
    return Trial(
        recipe=HIGH_PRECISION if recipe is None else recipe.name,
        loss=loss if math.isfinite(loss) else math.inf,
        losses=tuple(losses),
        seconds=seconds,
        cost=cost,
        bits=bits,
        coverage=0.0 if report is None else report.coverage(),
    )


_HIGH = 16.0  # bits of what is not quantized, for this comparison


def _cost(report: Report) -> tuple[float, float]:
    """Returns the cost of the products on the report's target, and the mean of their bits."""
    total = cost = bits = 0.0
    for s in report.with_gradients:
        work = s.site.flops * s.site.trips
        widths = [_HIGH if q is None else get_format(q.format).storage.bits for q in (s.lhs, s.rhs)]
        total += work
        bits += work * sum(widths) / 2
        cost += work * (max(widths) / _HIGH if s.status == "native" else 1.0)
    return (cost / total, bits / total) if total else (1.0, _HIGH)


def _recommended(
    trials: dict[str, Trial],
    found: dict[str, Recipe],
    within: float,
    tolerance: float,
    budget: int,
    target: str,
) -> Recommendation:
    ordered = tuple(sorted(trials.values(), key=lambda t: t.loss))
    learned = [t for t in ordered if t.recipe in found and math.isfinite(t.loss)]
    recipe = None
    if learned and learned[0].loss <= _limit(trials[HIGH_PRECISION].loss, tolerance):
        good = [t for t in learned if t.loss <= _limit(learned[0].loss, within)]
        recipe = found[min(good, key=lambda t: (t.cost, t.bits, t.loss)).recipe]
    return Recommendation(recipe, ordered, within, tolerance, budget, target)


def _limit(loss: float, fraction: float) -> float:
    """The largest loss that is above this one, which may be negative, by no more than that."""
    return loss + fraction * abs(loss) if math.isfinite(loss) else loss


def _last_output(out: Any) -> Any:
    last: Any = out[-1] if isinstance(out, (tuple, list)) and out else out
    is_scalar = isinstance(last, jax.Array) and not last.shape
    if not is_scalar or not jnp.issubdtype(last.dtype, jnp.floating):
        raise ValueError(
            "the last output of the step is no scalar, so it is not the loss: pass loss=, a "
            "function of what the step returns"
        )
    return last


def _replacing(has_loss: bool, number: int, args: tuple[Any, ...], out: Any) -> tuple[Any, ...]:
    """The arguments with the outputs, but for a loss, for the leading ones of their shapes."""
    del number
    outs = list(out) if isinstance(out, (tuple, list)) else [out]
    outs = outs[: len(outs) - has_loss]
    pairs = zip(args, outs, strict=False)
    count = len(list(itertools.takewhile(lambda pair: _kind(pair[0]) == _kind(pair[1]), pairs)))
    if not count:
        raise ValueError(
            "the first output of the step is not like its first argument, so it is not its new "
            "parameters: pass advance=, which makes the next step's arguments"
        )
    return (*outs[:count], *args[count:])


def _kind(tree: Any) -> Any:
    """Structure and shapes; leaves that are neither arrays nor numbers have none."""

    def shape(x: Any) -> Any:
        return np.shape(x) if hasattr(x, "shape") or isinstance(x, (int, float, complex)) else None

    leaves, structure = jax.tree.flatten(tree)
    return structure, list(map(shape, leaves))
