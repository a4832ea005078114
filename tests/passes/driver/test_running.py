"""Pipelines run, print programs and times on the way, and say what went wrong where."""

import io
import warnings
from pathlib import Path
from typing import Any

import pytest

import srjit._mlir as mlir
from srjit import passes
from srjit.passes import Printing
from srjit.passes.driver.options import options_of

from .test_pipeline import Options

MODULE = """\
func.func private @unused(%x: tensor<2xf32>) -> tensor<2xf32> {
  return %x : tensor<2xf32>
}
func.func public @main(%x: tensor<2xf32>) -> tensor<2xf32> {
  %0 = stablehlo.add %x, %x : tensor<2xf32>
  return %x : tensor<2xf32>
}
"""


# ------------------------------------------------------------------------------------------ running


def test_text_bytecode_artifacts_and_modules_are_run():
    pipeline = passes.parse("symbol-dce,func.func(canonicalize)")
    from_text = pipeline.run(MODULE)
    assert "@unused" not in str(from_text)
    assert "stablehlo.add" not in str(from_text)
    module = passes.parse("").run(MODULE)
    bytecode = io.BytesIO()
    module.operation.write_bytecode(bytecode)
    artifact = mlir.stablehlo.serialize_portable_artifact(  # which uses the module up
        passes.parse("").run(MODULE), mlir.stablehlo.get_current_version()
    )
    assert str(pipeline.run(bytecode.getvalue())) == str(from_text)
    assert str(pipeline.run(artifact)) == str(from_text)
    assert pipeline.run(module) is module
    assert str(module) == str(from_text)
    operation = passes.parse("").run(MODULE).operation
    assert pipeline.run(operation) is operation


def test_what_is_no_module_is_refused():
    module = passes.parse("").run(MODULE)
    with pytest.raises(TypeError, match=r"on a builtin\.module, not on func\.func"):
        passes.parse("cse").run(module.body.operations[0])  # pyright: ignore


def test_a_malformed_module_gives_mlirs_diagnostic():
    with pytest.raises(passes.PipelineError, match=r"-:2:3: error: .*custom op 'nope'") as error:
        passes.parse("cse").run("func.func @main() {\n  nope\n}")
    (said,) = error.value.diagnostics
    assert (said.severity, said.line, said.column) == ("error", 2, 3)


def test_a_failing_pass_gives_its_message_at_its_operation():
    with pytest.raises(passes.PipelineError) as error:
        passes.parse("test-options{text=fail},cse").run(MODULE)
    (said,) = error.value.diagnostics
    assert (said.message, said.line) == ("this cannot be done", 4)
    assert isinstance(error.value.__cause__, passes.PassError)


def test_a_bug_in_a_pass_is_the_cause_of_the_error():
    with pytest.raises(passes.PipelineError, match="test-options failed: KeyError") as error:
        passes.parse("test-options{text=bug}").run(MODULE)
    assert isinstance(error.value.__cause__, KeyError)


def test_an_interrupt_stays_one():
    with pytest.raises(KeyboardInterrupt):
        passes.parse("test-options{text=interrupt}").run(MODULE)


def test_warnings_of_passes_are_python_warnings():
    with pytest.warns(passes.PassWarning, match="careful"):
        passes.parse("test-options{text=warn}").run(MODULE)
    said: list[passes.Diagnostic] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        passes.parse("test-options{text=warn}").run(MODULE, sink=said.append)
    assert [d.message for d in said] == ["careful"]


def test_an_invalid_program_is_found_after_the_pass_that_made_it():
    pipeline = passes.parse("test-options{text=invalid}")
    with pytest.raises(passes.PipelineError, match="function_type"):
        pipeline.run(MODULE)
    pipeline.run(MODULE, verify_each=False)


def test_modules_of_jax_are_run_and_keep_working():
    import jax
    import jax.numpy as jnp

    lowered = jax.jit(lambda x: jax.jit(jnp.tanh)(x) * 2).lower(jnp.ones(3))
    module = lowered.compiler_ir()
    assert "call @" in str(module)
    passes.parse("srjit-inline-calls,func.func(canonicalize,cse)").run(module)  # pyright: ignore
    assert "call @" not in str(module)
    assert lowered.compile()(jnp.zeros(3)).tolist() == [0, 0, 0]


# ----------------------------------------------------------------------------------------- printing


def dumps(pipeline: str, capfd: pytest.CaptureFixture[str], **when: Any) -> list[str]:
    capfd.readouterr()
    passes.parse(pipeline).run(MODULE, printing=Printing(**when))
    lines = capfd.readouterr().err.split("\n")
    return [line.split("//")[2].strip("- ") for line in lines if line.startswith("// -----//")]


def test_mlir_prints_around_all_passes(capfd: pytest.CaptureFixture[str]):
    text = "test-options,func.func(cse),symbol-dce"
    after = dumps(text, capfd, after_all=True)
    assert [line.split(": ")[1] for line in after] == ["test-options", "cse", "cse", "symbol-dce"]
    assert len(dumps(text, capfd, before_all=True, after_all=True)) == 8
    changed = dumps(text, capfd, after_change=True)
    assert [line.split(": ")[1] for line in changed] == ["cse", "symbol-dce"]
    assert dumps(text, capfd, after_failure=True) == []


def test_named_passes_are_printed_around_also_where_they_are_nested(
    capfd: pytest.CaptureFixture[str],
):
    text = "test-options,func.func(canonicalize,cse),symbol-dce"
    named = dumps(text, capfd, before=frozenset({"test-options"}), after=frozenset({"cse"}))
    assert named == [
        "IR Dump Before test-options",
        "IR Dump After cse ('func.func' operation: @unused)",
        "IR Dump After cse ('func.func' operation: @main)",
    ]
    changed = dumps(text, capfd, after=frozenset({"cse", "symbol-dce"}), after_change=True)
    assert changed == ["IR Dump After symbol-dce"]


def test_programs_are_printed_to_a_tree_of_files(tmp_path: Path):
    text = "test-options,func.func(cse)"
    passes.parse(text).run(MODULE, printing=Printing(tree_dir=str(tmp_path / "all")))
    found = {path.name for path in (tmp_path / "all").rglob("*.mlir")}
    assert found == {"0_test-options.mlir", "0_0_cse.mlir"}
    named = Printing(tree_dir=str(tmp_path / "named"), after=frozenset({"cse"}))
    passes.parse(text).run(MODULE, printing=named)
    assert len(list((tmp_path / "named").rglob("*cse.mlir"))) == 2


def test_times_of_passes_are_printed(capfd: pytest.CaptureFixture[str]):
    passes.parse("test-options,cse").run(MODULE, timing=True)
    report = capfd.readouterr().err
    assert "Execution time report" in report
    assert "Options" in report


def test_every_option_has_a_text_that_says_what_it_wants():
    for option in options_of(Options).values():
        assert option.wants
