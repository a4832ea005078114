"""The language-model example: its data, its runs, its checkpoints."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

import lm_checkpoint
import lm_data
import train_lm
from lm_checkpoint import CheckpointError

RECIPES = ["bf16", "int8", "nvfp4", "bf16-sr"]
UNIFORM_LOSS = np.log(lm_data.VOCABULARY)


def quick_run(recipe="bf16", **changes):
    args = train_lm.parse_arguments(["--quick", "--steps", "8"])
    return dataclasses.replace(train_lm.make_run(args, recipe, seed=3), **changes)


def finish(run, out, resume=False):
    out.mkdir(exist_ok=True)
    *_, state = train_lm.train(run, out, checkpoint_every=3, resume=resume)
    return state


def interrupt_after(steps, run, out):
    out.mkdir(exist_ok=True)
    training = train_lm.train(run, out, checkpoint_every=3, resume=False)
    for _ in range(steps):
        next(training)
    training.close()


def assert_same_bits(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def train_from_command_line(out, *arguments):
    assert train_lm.main(["--quick", "--out", str(out), *arguments]) == 0
    return json.loads((out / "results.json").read_text())


# -- data


def test_no_file_is_in_both_splits_and_none_is_cut():
    files = lm_data.library_files()
    held_out = [name for name in files if lm_data.is_held_out(name)]
    train = [name for name in files if not lm_data.is_held_out(name)]
    corpus = lm_data.load_corpus()
    assert corpus.held_out.tobytes() == b"".join(files[name].read_bytes() for name in held_out)
    assert corpus.train.tobytes() == b"".join(files[name].read_bytes() for name in train)
    assert 0.05 < corpus.held_out.size / (corpus.train.size + corpus.held_out.size) < 0.2


def test_no_whole_file_of_the_training_text_is_repeated_in_the_held_out_text():
    files = lm_data.library_files()
    held_out, train = set(), set()
    for name, path in files.items():
        text = path.read_bytes()
        if len(text) > 200:  # shorter ones are empty __init__.py and the like
            (held_out if lm_data.is_held_out(name) else train).add(text)
    assert not held_out & train


def test_the_split_depends_on_names_alone():
    names = ["abc.py", "ast.py", "calendar.py", "enum.py", "heapq.py", "json/encoder.py"]
    held_out = [name for name in names if lm_data.is_held_out(name)]
    assert held_out == ["calendar.py", "enum.py", "json/encoder.py"]
    assert list(lm_data.library_files()) == sorted(lm_data.library_files())


def test_a_batch_is_a_function_of_seed_and_step():
    text = lm_data.load_corpus().train
    later = lm_data.training_batch(text, seed=1, step=7, batch=4, seq=16)
    np.testing.assert_array_equal(later, lm_data.training_batch(text, 1, 7, 4, 16))
    assert later.shape == (4, 17)
    for seed, step in [(1, 8), (2, 7), (7, 1)]:
        assert (later != lm_data.training_batch(text, seed, step, 4, 16)).any()


def test_batches_reach_both_ends_of_the_text():
    text = np.arange(20, dtype=np.uint8)
    drawn = lm_data.training_batch(text, seed=0, step=0, batch=500, seq=16)
    assert (drawn.min(), drawn.max()) == (0, 19)
    checked = np.concatenate(lm_data.validation_batches(text, seq=16, windows=5, batch=2))
    assert checked.shape == (5, 17)
    assert (checked.min(), checked.max()) == (0, 19)


# -- runs


@pytest.mark.parametrize(
    "recipe",
    [r if r == "int8" else pytest.param(r, marks=pytest.mark.nightly) for r in RECIPES],
)
def test_a_quick_run_learns_and_reports(recipe, tmp_path, capsys):
    results = train_from_command_line(tmp_path, "--recipe", recipe)
    (result,) = results["runs"][recipe]
    assert result["train_loss"][-1] < result["train_loss"][0] - 0.5
    assert result["val_loss"][-1][1] < UNIFORM_LOSS - 0.5
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
    assert recipe in capsys.readouterr().out


def test_the_report_is_the_mean_over_seeds(tmp_path):
    results = train_from_command_line(tmp_path, "--recipe", "bf16", "--seeds", "2", "--steps", "4")
    losses = [result["val_loss"][-1][1] for result in results["runs"]["bf16"]]
    assert losses[0] != losses[1]
    assert results["summary"]["bf16"]["val_loss"] == pytest.approx(np.mean(losses))


@pytest.mark.nightly
def test_the_demo_compares_every_recipe_with_its_twin(tmp_path, capsys):
    results = train_from_command_line(tmp_path, "--compare", "--steps", "4")
    assert list(results["summary"]) == train_lm.COMPARED
    assert results["summary"]["bf16"]["gap_percent"] == 0
    losses = {name: tuple(run["train_loss"]) for name, (run,) in results["runs"].items()}
    assert len(set(losses.values())) == len(losses), "two recipes computed the same thing"
    table = capsys.readouterr().out
    assert "nvfp4, nearest grads" in table


@pytest.mark.nightly
def test_an_ablation_takes_a_part_away_at_a_time(tmp_path):
    results = train_from_command_line(tmp_path, "--ablate", "--steps", "4")
    assert list(results["summary"]) == train_lm.ABLATED
    losses = {name: tuple(run["train_loss"]) for name, (run,) in results["runs"].items()}
    assert len(set(losses.values())) == len(losses), "two recipes computed the same thing"
    rows = (tmp_path / "table.md").read_text().splitlines()
    assert len(rows) == 2 + len(train_lm.ABLATED)
    assert all(row.count("|") == 5 for row in rows)


@pytest.mark.parametrize(
    ("variant", "field", "value"),
    [
        ("nearest", "rounding", "stochastic"),
        ("no-hadamard", "hadamard", True),
        ("rows", "granularity", "square"),
    ],
)
def test_a_variant_lacks_a_part_of_nvfp4_and_nothing_else(variant, field, value):
    found = {"nvfp4": [], f"nvfp4:{variant}": []}
    for name, quantizations in found.items():
        train_lm.find_recipe(name).map_quantizations(
            lambda role, kind, q, into=quantizations: into.append(dataclasses.asdict(q)) or q
        )
    whole, without = found.values()
    assert any(q[field] == value for q in whole)
    assert all(q[field] != value for q in without)
    for a, b in zip(whole, without, strict=True):
        assert a | {field: None} == b | {field: None}


@pytest.mark.nightly
def test_bfloat16_parameters_learn_as_float32_ones_do_if_updates_round_stochastically(tmp_path):
    """Also the moments are in bfloat16: with updates rounded to nearest, small ones are lost."""
    model = ["--steps", "300", "--batch", "8", "--seq", "64", "--seeds", "3"]
    recipes = ["--recipe", "bf16", "bf16-sr", "bf16-sr:nearest"]
    gaps = {
        name: row["gap_percent"]
        for name, row in train_from_command_line(tmp_path, *model, *recipes)["summary"].items()
    }
    assert gaps["bf16-sr"] < 0.5 and gaps["bf16-sr:nearest"] > 2


@pytest.mark.nightly
def test_bfloat16_parameters_take_half_the_memory_and_with_moments_in_8_bits_a_third(tmp_path):
    wide, half, third = (
        finish(quick_run(r, steps=1), tmp_path / r.replace(":", "-"))
        for r in ("bf16", "bf16-sr", "bf16-sr:moments")
    )
    sizes = [
        sum(x.nbytes for x in jax.tree.leaves((state.params, state.opt_state)))
        for state in (wide, half, third)
    ]
    # Moments of fewer than 4096 elements stay as they are: a tenth of this small model's.
    assert sizes[1] < 0.51 * sizes[0] and sizes[2] < 0.37 * sizes[0]


@pytest.mark.parametrize("name", ["int7", "nvfp4:rounded"])
def test_an_unknown_recipe_is_refused_before_anything_runs(name, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train_lm.main(["--recipe", "bf16", name, "--out", str(tmp_path / "out")])
    assert name in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# -- checkpoints


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [r if r == "nvfp4" else pytest.param(r, marks=pytest.mark.nightly) for r in RECIPES],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(recipe, tmp_path):
    run = quick_run(recipe)
    whole = finish(run, tmp_path / "whole")
    interrupt_after(5, run, tmp_path / "cut")
    resumed = finish(run, tmp_path / "cut", resume=True)
    assert_same_bits((whole.params, whole.opt_state), (resumed.params, resumed.opt_state))
    for losses in ("train_loss", "val_loss"):
        assert whole.result[losses] == resumed.result[losses]


def test_resuming_a_finished_run_only_reports_it(tmp_path):
    run = quick_run()
    finished = finish(run, tmp_path)
    (again,) = train_lm.train(run, tmp_path, checkpoint_every=3, resume=True)
    assert_same_bits(finished.params, again.params)
    assert again.result == finished.result


def test_without_resume_a_checkpoint_is_not_read(tmp_path):
    run = quick_run()
    run.checkpoint(tmp_path).write_bytes(b"not a checkpoint")
    assert finish(run, tmp_path).step == run.steps


def truncate(data):
    return data[: len(data) // 2]


def flip_a_bit(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def empty(data):
    return b""


def replace_by_text(data):
    return b"not a checkpoint"


@pytest.mark.crossed(1, most=2)
@pytest.mark.parametrize("damage", [truncate, flip_a_bit, empty, replace_by_text])
def test_a_damaged_checkpoint_is_refused_by_name(damage, tmp_path, capsys):
    arguments = ["--quick", "--recipe", "bf16", "--steps", "2", "--out", str(tmp_path)]
    assert train_lm.main(arguments) == 0
    (checkpoint,) = tmp_path.glob("*.npz")
    checkpoint.write_bytes(damage(checkpoint.read_bytes()))
    assert train_lm.main([*arguments, "--resume"]) == 1
    message = capsys.readouterr().err
    assert f"{checkpoint} is truncated or damaged" in message
    assert "without --resume" in message


def test_a_checkpoint_of_other_settings_is_refused_and_they_are_named(tmp_path):
    interrupt_after(3, quick_run(), tmp_path)
    with pytest.raises(CheckpointError, match=r"lr: 0\.001 there, 0\.5 here"):
        finish(quick_run(lr=0.5), tmp_path, resume=True)


@pytest.mark.parametrize(
    "other",
    [{"a": np.zeros(3)}, {"a": np.zeros(2, np.float32), "b": np.zeros(2)}, {"b": np.zeros(2)}],
    ids=["shape", "dtype and one more", "name"],
)
def test_a_checkpoint_of_another_state_is_refused(other, tmp_path):
    lm_checkpoint.save(tmp_path / "c.npz", other, {"run": {}})
    with pytest.raises(CheckpointError, match="holds another state"):
        lm_checkpoint.load(tmp_path / "c.npz", {"a": np.zeros(2)}, run={})


def test_a_crash_while_writing_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path, tree = tmp_path / "c.npz", {"a": np.arange(3.0)}
    lm_checkpoint.save(path, tree, {"run": {}})

    def crash(file, **arrays):
        file.write(b"half of it")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", crash)
    with pytest.raises(OSError, match="disk full"):
        lm_checkpoint.save(path, {"a": np.zeros(3)}, {"run": {}})
    loaded, _ = lm_checkpoint.load(path, tree, run={})
    assert_same_bits(loaded, {"a": np.arange(3.0, dtype=loaded["a"].dtype)})
