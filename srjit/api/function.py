"""``srjit``: what ``jax.jit`` is, with the matrix multiplications of the function quantized."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from srjit import aot, targets
from srjit.api.jitted import Jitted
from srjit.api.options import JIT, NOT_GIVEN, UNDONATED, Options, takes
from srjit.api.transformation import Onlookers
from srjit.calling.keys import Stateful, as_words, key_words, sent
from srjit.diagnostics.replay import Replayed, replayed
from srjit.diagnostics.verify.capture import Capture
from srjit.diagnostics.verify.certificate import Certificate
from srjit.diagnostics.verify.certify import certify
from srjit.diagnostics.watch.diagnosis import Diagnosis, diagnosed
from srjit.diagnostics.watch.stream import Record, Watch, Watched
from srjit.program.site_names import naming_sites
from srjit.recipes import Recipe
from srjit.report.report import Report
from srjit.targets import Target


class SrjitFunction(Jitted):
    """A jitted function whose matrix multiplications are quantized; made by ``srjit``.

    Beside what ``jax.jit`` has, it compiles for other hardware, and tests and replays its noise.
    """

    def aot(
        self,
        *args: Any,
        target: str | Target | None = None,
        mesh: Any = None,
        sr_key: Any = None,
        sr_state: Any = None,
        **kwargs: Any,
    ) -> aot.CompiledReport:
        """Compiles for hardware that is not attached, and reports what its compiler made of it.

        Args:
          *args, **kwargs: fun's own; ``jax.ShapeDtypeStruct`` will do in place of arrays.
          target: a name or a Target; the decorator's own if None. ``recipe="auto"`` is its.
          mesh: for several devices: sizes of the mesh's axes by name, or a Mesh or AbstractMesh;
            by default, that of the arguments' shardings, or of ``in_shardings``. Shardings,
            PartitionSpecs too, are about axes of the same names.
          sr_key, sr_state: as of a call; not needed.

        Returns:
          A report of every site, and of the program beside the one that was not rewritten.

        Raises:
          MissingCompilerError: the target's compiler is not installed.
          ValueError: no such target, none that srjit can compile for, or no mesh of such a size.
        """
        chosen = self.target if target is None else targets.get(target)
        given = self._jit.in_shardings(len(args))
        own = [getattr(x, "sharding", None) for x in jax.tree.leaves((args, kwargs))]
        place = aot.Placement.of(chosen, mesh, given, own)
        moved = place.options(self._jit_options)
        args = place.arguments(args, given)
        kwargs, sr_key, sr_state = place.arguments((kwargs, sr_key, sr_state))
        copy = self.copy(target=chosen, **dict.fromkeys(JIT, NOT_GIVEN) | moved)
        with place.entered():
            planned = copy.explain(*args, **kwargs)
            before = jax.jit(self._fun, **moved).lower(*args, **kwargs)
            with naming_sites():
                after = copy.lower(*args, sr_key=sr_key, sr_state=sr_state, **kwargs)
        return aot.reported(before, after, planned, place)

    def verify(
        self,
        *args: Any,
        draws: int = 256,
        sr_key: Any = None,
        sr_state: Any = None,
        **kwargs: Any,
    ) -> Certificate:
        """Runs the program ``draws`` times and tests its stochastic rounding on these arguments.

        What each stochastic quantizer and write-back gets in the first step is rounded again with
        the keys of all steps. Signed sums of what that is off by, by sign, binade and fraction of a
        step, tell a bias; products tell noise that neighbours, sites or steps share. Limits are
        Bernstein's for the number of draws (see ``srjit.diagnostics.verify.statistics``): a
        correct program fails less than once in 10^6 certificates. Of tensors of more than 65536
        elements a seeded choice of that many is summed, and as many pairs of neighbours; noise is
        compared between steps and between sites on the first 4096 elements; of what stands in loops
        or shards, 4 executions are looked at. A program with stochastic write-backs runs twice as
        often: the averages of its outputs are those without.

        What is verified is the formula of the platform that this runs on, with ``layer="jaxpr"``,
        whose noise is that of the other layer. Quantizers that only differentiating the function
        would add are not in its program: verify the function that differentiates it.

        Args:
          *args, **kwargs: fun's own, with values; nothing is donated, no object changed.
          draws: how many steps, 4 at least.
          sr_key: a typed PRNG key or an integer: the base key of the steps, which are numbered;
            the decorator's ``key`` if None, or 0.
          sr_state: for delayed scales, the state to start each step with; that of ``init_state`` if
            None.

        Returns:
          A certificate: ``.passed``, ``.verdict``, ``.operands``, ``.outputs``; ``str()`` is a
          table for a terminal; ``.to_json()``, ``.to_html()``.

        Raises:
          ValueError: fewer than 4 draws.
        """
        seen = Capture()
        program = self._program(Onlookers(observer=seen.observe), args, kwargs, sr_key, sr_state)
        report = Report.of(self.planned(args, kwargs))
        return certify(program, self._settings.recipe, self._settings.target, seen, report, draws)

    def diagnose(
        self, *args: Any, steps: int = 1, sr_key: Any = None, sr_state: Any = None, **kwargs: Any
    ) -> Diagnosis:
        """Runs the program on these arguments and says what its gradients and their rounding do.

        Watches what the recipe quantizes: of a function that is differentiated outside, no
        gradients are in its program. ``srjit(..., watch=...)`` does the same in a run.

        Args:
          *args, **kwargs: fun's own, with values; nothing is donated, no object changed.
          steps: how often to run, each time with another key.
          sr_key, sr_state: as of ``verify``.

        Returns:
          A diagnosis: ``.findings``, ``.advice``; ``str()`` is a table and advice for a terminal;
          ``.to_json()``, ``.to_html()``.

        Raises:
          ValueError: steps is not positive.
        """
        if steps < 1:
            raise ValueError(f"steps={steps}: it is a number of steps, 1 at least")
        records: list[Record] = []
        watch = Watch(records.append)
        program = self._program(Onlookers(stream=watch), args, kwargs, sr_key, sr_state)
        run = program(self._settings.recipe)
        for step in range(steps):
            watch.take(run(step).measured, step)
        notes: list[str] = []
        if not records:
            notes.append(
                "no gradient is quantized in this program: diagnose the function that "
                "differentiates, with a recipe that quantizes gradients"
            )
        return diagnosed(records, notes)

    def replay(
        self,
        *args: Any,
        step: Any,
        site: int | str,
        operand: str | None = None,
        trips: Sequence[int] | None = None,
        shards: Mapping[str, int] | None = None,
        **kwargs: Any,
    ) -> list[Replayed]:
        """The noise of one site in one step of a run, drawn again without running the program.

        It depends on the step's key and on places, not on values, devices or what ran before. On
        chips that round by an instruction of their own, noise is another: see ``explain``.

        Args:
          *args, **kwargs: fun's own; ``jax.ShapeDtypeStruct`` will do; those of the last call that
            was traced if there are none.
          step: with a base key, the number of the call; otherwise the call's ``sr_key``.
          site: number of the site, or its path, in which ``*`` stands for anything.
          operand: ``lhs`` or ``rhs``; None: all that are rounded stochastically.
          trips: an iteration of each loop around the site, outermost first; None: all.
          shards: by name, places along mesh axes of ``shard_map``; 0 where nothing is said.

        Returns:
          One for each operand and iteration; none if the site draws no noise.

        Raises:
          ValueError: there is no such site; all noise is that of write-backs and casts, which is
            not replayed; or no arguments and nothing was called yet.
        """
        if not args and not kwargs:
            if self._last is None:
                raise ValueError(f"{self.name} was not called yet: replay needs its arguments")
            args, kwargs = self._last
        plan = self.planned(args, kwargs)
        key = as_words(step) if self._counter.base is None else self._counter.at(step)
        root = None if self._settings.mode == "inference" else key_words(sent(key, ()))
        return replayed(plan, root, site, operand, trips, shards or {})

    def _program(
        self, onlookers: Onlookers, args: Any, kwargs: Any, sr_key: Any, sr_state: Any
    ) -> Callable[[Recipe], Callable[[int], Any]]:
        """Returns a function of a recipe and a step's number that runs the program.

        Args:
          onlookers: see the program; nothing is donated.
          args, kwargs, sr_key, sr_state: as of ``verify``.
        """
        if self._settings.recipe.has_delayed_scales and sr_state is None:
            sr_state = self.init_state(*args, **kwargs)
        base = next((key for key in (sr_key, self._counter.base) if key is not None), 0)
        if self._settings.mode == "inference":
            base = None

        def program(recipe: Recipe) -> Callable[[int], Any]:
            changed = {"recipe": recipe, "layer": "jaxpr", "strict": False, **UNDONATED}
            copy = self.copy(onlookers, key=base, **changed)

            def run(step: int) -> Any:
                key = None if base is None else copy._counter.at(step)
                given = sent(key, (args, kwargs))
                given = given if sr_state is None else Stateful(given, sr_state)
                out = copy._jit.of(args, kwargs)(given, *args, **kwargs)
                return out if sr_state is None or type(out) is Watched else out[0]

            return run

        return program


@takes(Options)
def srjit(fun: Callable[..., Any], options: Options) -> SrjitFunction:
    """``jax.jit`` with the matrix multiplications of ``fun`` quantized.

    Args:
      fun: any function of pytrees: a training step, a loss, a layer. Without it, a decorator.
      OPTIONS

    Returns:
      A SrjitFunction, called as ``jax.jit(fun)`` is, with the keyword ``sr_key`` more.

    Raises:
      ValueError: unknown names (the nearest are listed), params_argnums out of range, or ``fun``
        has a parameter called ``sr_key``.
      TypeError: ``key`` is not a key, or there is no such option.

    Example:
      >>> @srjit(recipe="int8")
      ... def train_step(params, batch):
      ...     loss, grads = jax.value_and_grad(loss_fn)(params, batch)
      ...     return jax.tree.map(lambda p, g: p - 1e-3 * g, params, grads), loss
      >>> params, loss = train_step(params, batch, sr_key=jax.random.key(0))
    """
    return SrjitFunction(fun, options)


def replay(fn: SrjitFunction, *args: Any, **options: Any) -> list[Replayed]:
    """``fn.replay(*args, step=..., site=...)``: the noise of one site in one step of a run."""
    return fn.replay(*args, **options)  # of a method, too
