"""``SRJIT_DUMP_TO`` for pipelines: every stage is a file from which the rest can be run."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import pytest

import srjit
from srjit import passes, recipes
from srjit.tools import opt
from steps import KEY, W, X, same, step

LOWERED = jax.jit(step).lower(W, X)
TEXT = LOWERED.as_text(debug_info=True)
STAGES = [
    "srjit-annotate-matmuls{params=0}",
    "srjit-insert-quantize{recipe=fp8-delayed}",
    "func.func(canonicalize,cse)",
    "srjit-share-quantized",
    "srjit-legalize{target=cpu}",
]
PIPELINE = ",".join(STAGES)
NAMES = ["lowered", *(stage.partition("{")[0] for stage in STAGES)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SRJIT_DUMP_TO", str(tmp_path / "dumps"))
    return tmp_path / "dumps"


def stage_of(path: Path) -> str:
    return path.name.split(".", 2)[2].removesuffix(".mlir")


def left(path: Path) -> str:
    """The pipeline that the first comment of a file is."""
    lines = path.read_text().splitlines()
    count = next(i for i, line in enumerate(lines) if not line.startswith("//"))
    return "\n".join(line.removeprefix("// ") for line in lines[:count])


def by_opt(tmp: Path) -> None:
    (tmp / "in.mlir").write_text(TEXT)
    assert opt.main([str(tmp / "in.mlir"), "-p", PIPELINE, "-o", str(tmp / "out.mlir")]) == 0


WAYS: dict[str, Callable[[Path], Any]] = {
    "Pipeline.run": lambda _: passes.parse(PIPELINE).run(TEXT),
    "rejit": lambda _: srjit.rejit(LOWERED, PIPELINE),
    "srjit-opt": by_opt,
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_to_run_a_pipeline_dumps_every_stage_in_order(
    way: str, folder: Path, tmp_path: Path
):
    for _ in range(2):
        WAYS[way](tmp_path)
    files = sorted(folder.iterdir())
    assert [stage_of(path) for path in files] == NAMES * 2
    numbers = [int(path.name.split(".")[0]) for path in files]
    assert numbers == list(range(numbers[0], numbers[0] + len(files)))
    assert {path.name.split(".")[1] for path in files} == {"jit_step"}
    for first, second in zip(files[: len(NAMES)], files[len(NAMES) :], strict=True):
        assert first.read_text() == second.read_text()


def test_every_stage_read_again_with_what_is_left_gives_the_same_module_and_bits(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = str(passes.parse(PIPELINE).run(TEXT))
    monkeypatch.delenv("SRJIT_DUMP_TO")
    files = sorted(folder.iterdir())
    assert left(files[-1]) == "builtin.module()"
    for path in files:
        assert str(passes.parse(left(path)).run(path.read_text())) == expected, path.name
    assert len({left(path) for path in files}) == len(files)
    bits = srjit.rejit(LOWERED, PIPELINE)
    state = bits.init_state()
    for path in files[1:3]:
        again = srjit.rejit(path.read_text(), left(path))
        assert same(
            again(W, X, sr_key=KEY, sr_state=state)[0], bits(W, X, sr_key=KEY, sr_state=state)[0]
        )


@pytest.mark.crossed(1, most=2)
@pytest.mark.parametrize("layer", ["stablehlo"])
@pytest.mark.parametrize(
    "recipe",
    [
        recipes.get("nvfp4"),
        dataclasses.replace(recipes.get("int8").with_rounding(weights="stochastic"), name="mine"),
        dataclasses.replace(recipes.get("bf16-sr"), keep_first=1),
    ],
    ids=lambda r: r.name,
)
def test_the_decorator_dumps_pipelines_that_text_says_with_recipes_of_ones_own(
    layer: str, recipe: srjit.Recipe, tmp_path: Path
):
    srjit.srjit(step, recipe=recipe, layer=layer, dump_to=tmp_path)(W, X, sr_key=KEY)
    files = [
        path
        for path in sorted(tmp_path.iterdir())
        if "lowered" in path.name or "srjit-" in path.name
    ]
    assert stage_of(files[0]) == "lowered" and len(files) == 6
    results = {str(passes.parse(left(path)).run(path.read_text())) for path in files}
    assert len(results) == 1


def test_pipelines_inside_of_a_decorated_function_follow_its_own_option(folder: Path):
    srjit.srjit(step, recipe="int8", layer="stablehlo", dump_to="")(W, X, sr_key=KEY)
    assert not folder.exists()


def test_a_module_without_a_name_has_files_too(folder: Path):
    passes.parse("cse").run("module {}")
    assert [path.name.split(".")[1:] for path in sorted(folder.iterdir())] == [
        ["module", "lowered", "mlir"],
        ["module", "cse", "mlir"],
    ]


def test_stages_before_a_pass_that_fails_are_there(folder: Path):
    with pytest.raises(passes.PipelineError):
        passes.parse("cse,srjit-report,canonicalize").run(TEXT)
    assert [stage_of(path) for path in sorted(folder.iterdir())] == ["lowered", "cse"]


def test_a_folder_that_cannot_be_written_to_is_an_error_that_names_it(folder: Path):
    folder.write_text("")
    with pytest.raises(OSError, match=r"cannot dump to .*dumps \(dump_to or SRJIT_DUMP_TO\)"):
        passes.parse("cse").run(TEXT)
