"""Trains a small language model on the Python standard library's sources, in low precision.

    python examples/train_lm.py --recipe bf16 nvfp4
    python examples/train_lm.py --compare --out demo-out
    python examples/train_lm.py --ablate --seeds 3 --out ablation-out

The model (`lm_model.py`) is plain Flax NNX; `srjit` around the training step does the rest. `bf16`
is the same step under plain `jax.jit`. `NAME:nearest` is the recipe NAME with its gradients rounded
to nearest instead of stochastically, `NAME:no-hadamard` it without the Hadamard transform, and
`NAME:rows` it with a scale for every row of a block of weights instead of for a square. `bf16-sr`
is about weight updates: it keeps parameters and Adam's moments in bfloat16, where the others have
float32; `bf16-sr:nearest` is that with updates rounded to nearest, `bf16-sr:moments` with Adam's
moments in 8 bits. `NAME:residuals` keeps what the backward pass multiplies gradients by in 8 bits.

`--compare` runs bf16, int8, fp8 and nvfp4 and, of the last three, the variants with gradients
rounded to nearest. `--ablate` runs bf16, nvfp4, nvfp4 without each of its parts, and the recipes
that differ from it.

Every run leaves a checkpoint; `--resume` continues interrupted runs, and the result is bit for bit
that of a run without interruption: the data and the noise of a step depend on nothing but
(seed, step).
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from tqdm import tqdm

import lm_checkpoint
import lm_data
import lm_report
from lm_model import ModelConfig, Transformer, next_token_loss, training_loss
from lm_report import MOMENTS, NEAREST, NO_HADAMARD, RESIDUALS, ROWS, TWIN
from srjit import Quantization, Recipe, optim, recipes, srjit

COMPARED = [TWIN, *(base + kind for base in ("int8", "fp8", "nvfp4") for kind in ("", NEAREST))]
ABLATED = [
    TWIN,
    *("nvfp4" + kind for kind in ("", NEAREST, NO_HADAMARD, ROWS)),
    *("nvfp4-unbiased", "nvfp4-4over6", "nvfp4-eden"),
]
VALIDATIONS = 4  # in a run, evenly spaced
VALIDATION_BATCH = 32

FULL = {"steps": 200, "batch": 4, "seq": 128, "width": 256, "layers": 3, "heads": 4, "windows": 128}
QUICK = {"steps": 24, "batch": 4, "seq": 32, "width": 32, "layers": 1, "heads": 2, "windows": 8}


@dataclasses.dataclass(frozen=True)
class Run:
    """All that determines a run's numbers: equal runs agree bit for bit."""

    recipe: str
    seed: int
    steps: int
    batch: int
    seq: int
    lr: float
    windows: int
    model: ModelConfig

    def validates_after(self, step: int) -> bool:
        """True if the model is validated after this many steps."""
        return step in {self.steps * k // VALIDATIONS for k in range(1, VALIDATIONS + 1)}

    def settings(self) -> dict[str, Any]:
        """The run as JSON-able settings, with the identity of the text."""
        return dataclasses.asdict(self) | {"text": lm_data.load_corpus().fingerprint}

    def checkpoint(self, out: Path) -> Path:
        """The place of this run's checkpoint."""
        return out / f"{self.recipe.replace(':', '-')}-seed{self.seed}.npz"


@dataclasses.dataclass
class State:
    """A run after `step` steps; `result` holds what was measured so far."""

    params: Any
    opt_state: Any
    step: int
    result: dict[str, Any]

    def save(self, path: Path, run: Run) -> None:
        """Writes a checkpoint."""
        header = {"run": run.settings(), "step": self.step, "result": self.result}
        lm_checkpoint.save(path, (self.params, self.opt_state), header)


def changed(change: Callable[[Quantization], dict[str, Any]]) -> Callable[[Recipe], Recipe]:
    """Recipe -> the recipe with fields of its quantizations changed."""
    return lambda recipe: recipe.map_quantizations(
        lambda role, kind, q: dataclasses.replace(q, **change(q))
    )


VARIANTS: dict[str, Callable[[Recipe], Recipe]] = {
    "": lambda recipe: recipe,
    NEAREST: lambda recipe: dataclasses.replace(
        recipe.with_rounding(gradients="nearest"), weights=None, moments=None
    ),
    NO_HADAMARD: changed(lambda q: {"hadamard": False}),
    MOMENTS: lambda recipe: recipe,  # the optimizer's
    RESIDUALS: lambda recipe: dataclasses.replace(recipe, residuals="int8"),
    ROWS: changed(lambda q: {"granularity": "block"} if q.granularity == "square" else {}),
}


def find_recipe(name: str) -> Recipe | None:
    """The srjit recipe of this name, or None for the bf16 twin.

    Args:
        name: "bf16", or a recipe of `srjit.recipes` with the name of a variant after it.

    Raises:
        ValueError: there is no such recipe, or no such variant of it.
    """
    if name == TWIN:
        return None
    base = lm_report.base_of(name)
    variant = name.removeprefix(base)
    if variant not in VARIANTS:
        raise ValueError(f"{name}: variants of a recipe are {', '.join(filter(None, VARIANTS))}")
    return VARIANTS[variant](recipes.get(base))


def parameter_dtype(name: str) -> str:
    """The dtype of parameters and optimizer state: a recipe's own, if it rounds updates."""
    recipe = find_recipe(lm_report.base_of(name))
    return "float32" if recipe is None or recipe.weights is None else "bfloat16"


def make_optimizer(run: Run) -> optax.GradientTransformation:
    """AdamW with warm-up over the first tenth of the steps, then a cosine."""
    warmup = max(1, run.steps // 10)
    schedule = optax.warmup_cosine_decay_schedule(0.0, run.lr, warmup, max(run.steps, warmup + 1))
    optimizer = optax.adamw(schedule, b2=0.98, weight_decay=0.01)
    if run.recipe.endswith(MOMENTS):
        return optim.quantized_moments(optimizer, "int8", run.seed)
    return optimizer


def make_train_step(graphdef: nnx.GraphDef, optimizer: optax.GradientTransformation) -> Callable:
    """One step of training, (params, opt_state, tokens) -> (params, opt_state, loss)."""

    def train_step(params, opt_state, tokens):
        def loss_fn(params):
            return training_loss(nnx.merge(graphdef, params), tokens)

        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    return train_step


def compile_train_step(train_step: Callable, name: str) -> Callable:
    """The step under the recipe of this name, called with `sr_key=`."""
    recipe = find_recipe(name)
    if recipe is None:
        plain = jax.jit(train_step, donate_argnums=(0, 1))
        return lambda *args, sr_key: plain(*args)
    return srjit(train_step, recipe=recipe, donate_argnums=(0, 1))


def compile_loss(graphdef: nnx.GraphDef, name: str) -> Callable:
    """(params, tokens) -> loss in the recipe's forward precision, rounded to nearest."""

    def loss_fn(params, tokens):
        return next_token_loss(nnx.merge(graphdef, params), tokens)

    recipe = find_recipe(name)
    if recipe is None:
        return jax.jit(loss_fn)
    return srjit(loss_fn, recipe=recipe, mode="inference")


def train(run: Run, out: Path, checkpoint_every: int, resume: bool) -> Iterator[State]:
    """Trains, yielding the state after every step, and at once after a resumed last one.

    The yielded state is valid until the next one is asked for (its buffers are donated).

    Raises:
        CheckpointError: `resume` found a checkpoint that is damaged or of another run.
    """
    corpus = lm_data.load_corpus()
    graphdef, params = nnx.split(Transformer(run.model, nnx.Rngs(run.seed)), nnx.Param)
    dtype = parameter_dtype(run.recipe)
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    optimizer = make_optimizer(run)
    train_step = compile_train_step(make_train_step(graphdef, optimizer), run.recipe)
    validate = make_validation(run, compile_loss(graphdef, run.recipe))
    state = start(run, params, optimizer.init(params), run.checkpoint(out) if resume else None)
    key = jax.random.key(run.seed)
    first = state.step
    if first == run.steps:
        yield state
    while state.step < run.steps:
        tokens = lm_data.training_batch(corpus.train, run.seed, state.step, run.batch, run.seq)
        began = time.perf_counter()
        state.params, state.opt_state, loss = train_step(
            state.params, state.opt_state, tokens, sr_key=jax.random.fold_in(key, state.step)
        )
        state.result["train_loss"].append(float(loss))
        record_time(state.result, time.perf_counter() - began, compiling=state.step == first)
        state.step += 1
        if run.validates_after(state.step):
            state.result["val_loss"].append([state.step, validate(state.params)])
        if state.step % checkpoint_every == 0 or state.step == run.steps:
            state.save(run.checkpoint(out), run)
        yield state


def start(run: Run, params: Any, opt_state: Any, checkpoint: Path | None) -> State:
    """The state to begin with: the checkpoint's where there is one, else a fresh one."""
    if checkpoint is None or not checkpoint.exists():
        result = {"train_loss": [], "val_loss": [], "step_seconds": [], "compile_seconds": 0.0}
        return State(params, opt_state, 0, result)
    like = (params, opt_state)
    (params, opt_state), header = lm_checkpoint.load(checkpoint, like, run.settings())
    return State(params, opt_state, header["step"], header["result"])


def make_validation(run: Run, loss_fn: Callable) -> Callable[[Any], float]:
    """params -> mean loss over the validation windows, the same for every run."""
    text = lm_data.load_corpus().held_out
    batches = lm_data.validation_batches(text, run.seq, run.windows, VALIDATION_BATCH)
    sizes = [len(batch) for batch in batches]

    def validate(params):
        losses = [float(loss_fn(params, batch)) for batch in batches]
        return float(np.average(losses, weights=sizes))

    return validate


def record_time(result: dict[str, Any], seconds: float, compiling: bool) -> None:
    """Adds the time of a step to the result; a process's first step is mostly compilation."""
    if compiling:
        result["compile_seconds"] = seconds
    else:
        result["step_seconds"].append(seconds)


def train_with_progress(run: Run, args: argparse.Namespace) -> dict[str, Any]:
    """Trains to the end under a progress bar; returns what was measured."""
    label = f"{lm_report.describe(run.recipe)}, seed {run.seed}"
    with tqdm(total=run.steps, desc=f"{label:<28}", unit="step") as bar:
        for state in train(run, args.out, args.checkpoint_every, args.resume):
            bar.update(state.step - bar.n)
            bar.set_postfix(loss=f"{state.result['train_loss'][-1]:.3f}", refresh=False)
        bar.set_postfix(val_loss=f"{lm_report.final_loss(state.result):.4f}")
    return state.result


def run_all(args: argparse.Namespace) -> None:
    """Runs every recipe with every seed, then writes the report."""
    args.out.mkdir(parents=True, exist_ok=True)
    runs: lm_report.Runs = {name: [] for name in args.recipe}
    for seed in range(args.seed, args.seed + args.seeds):
        for name in args.recipe:
            runs[name].append(train_with_progress(make_run(args, name, seed), args))
    lm_report.write_json(args.out / "results.json", settings(args), runs)
    lm_report.write_plot(args.out / "losses.png", runs)
    (args.out / "table.md").write_text(lm_report.markdown(runs) + "\n")
    print(f"\n{lm_report.table(lm_report.summarize(runs))}\n")
    files = {"Curves": "losses.png", "numbers": "results.json", "Markdown": "table.md"}
    print("   ".join(f"{what}: {args.out / name}" for what, name in files.items()))


def make_run(args: argparse.Namespace, name: str, seed: int) -> Run:
    """The run of one recipe and seed under the command line's options."""
    preset = QUICK if args.quick else FULL
    model = ModelConfig(
        vocabulary=lm_data.VOCABULARY,
        width=preset["width"],
        layers=preset["layers"],
        heads=preset["heads"],
        dtype=args.dtype,
        experts=args.experts,
    )
    return Run(
        recipe=name,
        seed=seed,
        steps=args.steps,
        batch=args.batch,
        seq=args.seq,
        lr=args.lr,
        windows=preset["windows"],
        model=model,
    )


def settings(args: argparse.Namespace) -> dict[str, Any]:
    """The settings of a run, for the JSON report."""
    shared = make_run(args, "", args.seed).settings()
    del shared["recipe"], shared["seed"]
    return shared | {
        "seeds": list(range(args.seed, args.seed + args.seeds)),
        "jax": jax.__version__,
    }


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """Reads the command line; `--quick` only changes the defaults."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--recipe",
        nargs="+",
        default=["int8"],
        help="bf16, or recipes of srjit, with :nearest (gradients), :no-hadamard or :rows (scales "
        "of weights) after them (default: int8)",
    )
    which.add_argument(
        "--compare",
        dest="recipe",
        action="store_const",
        const=COMPARED,
        help="bf16, int8, fp8 and nvfp4, and gradients rounded to nearest beside stochastic ones",
    )
    which.add_argument(
        "--ablate",
        dest="recipe",
        action="store_const",
        const=ABLATED,
        help="bf16, nvfp4, nvfp4 without each of its parts, and the recipes that differ from it",
    )
    parser.add_argument("--steps", type=_positive, help=_default("steps"))
    parser.add_argument("--batch", type=_positive, help=_default("batch"))
    parser.add_argument("--seq", type=_positive, help=_default("seq"))
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate (default: 1e-3)")
    parser.add_argument(
        "--experts", type=_natural, default=0, help="in place of every MLP (default: 0, an MLP)"
    )
    parser.add_argument(
        "--dtype",
        choices=["bfloat16", "float32"],
        default="bfloat16",
        help="compute dtype of the model, the twin named bf16 included (default: bfloat16)",
    )
    parser.add_argument(
        "--seed", type=_natural, default=0, help="of weights, data and noise (default: 0)"
    )
    parser.add_argument("--seeds", type=_positive, default=1, help="report means over this many")
    parser.add_argument("--out", type=Path, default=Path("lm-out"), help="default: lm-out")
    parser.add_argument("--checkpoint-every", type=_positive, default=50, metavar="STEPS")
    parser.add_argument("--resume", action="store_true", help="continue from checkpoints in --out")
    parser.add_argument("--quick", action="store_true", help="a tiny model and few steps")
    args = parser.parse_args(argv)
    args.recipe = list(dict.fromkeys(args.recipe))
    for option in ("steps", "batch", "seq"):
        if getattr(args, option) is None:
            setattr(args, option, (QUICK if args.quick else FULL)[option])
    try:
        for name in args.recipe:
            find_recipe(name)
    except ValueError as error:
        parser.error(str(error))
    return args


def _default(option: str) -> str:
    return f"default: {FULL[option]}, or {QUICK[option]} with --quick"


def _natural(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is negative")
    return value


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    args = parse_arguments(argv)
    try:
        run_all(args)
    except lm_checkpoint.CheckpointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; --resume continues from the last checkpoint.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
