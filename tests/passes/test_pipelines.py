"""Pipelines: their grammar, and running them."""

import dataclasses
import io
import warnings
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import srjit._mlir as mlir
from srjit import passes
from srjit.passes import MlirPass, Nested, Pipeline, Printing
from srjit.passes.driver.options import options_of

MODULE = """\
func.func private @unused(%x: tensor<2xf32>) -> tensor<2xf32> {
  return %x : tensor<2xf32>
}
func.func public @main(%x: tensor<2xf32>) -> tensor<2xf32> {
  %0 = stablehlo.add %x, %x : tensor<2xf32>
  return %x : tensor<2xf32>
}
"""


@passes.register
@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(passes.Pass):
    """One option of each type, and a way to fail."""

    name: ClassVar[str] = "test-options"
    text: str = "none"
    count: int = 0
    flag: bool = False
    rate: float = 1.0
    kind: Literal["nearest", "stochastic"] = "nearest"
    names: tuple[str, ...] = ()
    many_sizes: tuple[int, ...] = (1, 2)

    def __post_init__(self):
        if self.count < 0:
            raise ValueError("count cannot be negative")

    def run(self, module: Any) -> None:
        match self.text:
            case "fail":
                main = module.regions[0].blocks[0].operations[1]
                raise passes.PassError(main, "this cannot be done")
            case "bug":
                raise KeyError("nothing")
            case "interrupt":
                raise KeyboardInterrupt
            case "warn":
                passes.emit_warning(module, "careful")
            case "invalid":
                unused, main = module.regions[0].blocks[0].operations
                main.attributes["function_type"] = unused.attributes["sym_name"]
            case _:
                pass


# ------------------------------------------------------------------------------------------ grammar

words = st.text(max_size=6)
our_passes = st.builds(
    Options,
    text=words,
    count=st.integers(0, 99),
    flag=st.booleans(),
    rate=st.floats(allow_nan=False),
    kind=st.sampled_from(["nearest", "stochastic"]),
    names=st.lists(words, max_size=3).map(tuple),
    many_sizes=st.lists(st.integers(-9, 9), max_size=3).map(tuple),
)
mlir_passes = st.sampled_from(
    [
        MlirPass("canonicalize", (("max-iterations", "3"), ("top-down", "false"))),
        MlirPass("symbol-privatize", (("exclude", "{a,b}"),)),
        MlirPass("symbol-privatize", (("exclude", "'a b'"),)),
        MlirPass("cse"),
        MlirPass("sccp"),
    ]
)
nests = st.recursive(
    mlir_passes,
    lambda inner: st.builds(
        Nested,
        st.sampled_from(["func.func", "any", "builtin.module"]),
        st.lists(inner, min_size=1, max_size=3).map(tuple),
    ),
    max_leaves=5,
)
pipelines = st.lists(our_passes | nests, max_size=4).map(lambda parts: Pipeline(*parts))


@given(pipelines)
@settings(max_examples=200)
def test_what_a_pipeline_prints_is_parsed_as_the_same(pipeline: Pipeline):
    assert passes.parse(str(pipeline)) == pipeline
    assert str(passes.parse(str(pipeline))) == str(pipeline)


@given(st.text(alphabet="ab,(){}=' \"\n-1.", max_size=14))
def test_any_text_is_parsed_or_refused_at_a_character(text: str):
    try:
        passes.parse(f"test-options{text}")
    except passes.PipelineSyntaxError as error:
        assert 0 <= error.position <= len(error.text)


@pytest.mark.parametrize(
    ("text", "printed"),
    [
        ("", "builtin.module()"),
        ("builtin.module()", "builtin.module()"),
        ("cse", "builtin.module(cse)"),
        (" builtin.module ( cse , sccp ) ", "builtin.module(cse,sccp)"),
        ("func.func(canonicalize,cse)", "builtin.module(func.func(canonicalize,cse))"),
        ("builtin.module(cse),cse", "builtin.module(builtin.module(cse),cse)"),
        ("test-options{}", "builtin.module(test-options)"),
        ("test-options{flag}", "builtin.module(test-options{flag=true})"),
        ("test-options{flag=0 count=0}", "builtin.module(test-options)"),
        ("test-options{text='a b'}", 'builtin.module(test-options{text="a b"})'),
        ("test-options{text={a b}}", 'builtin.module(test-options{text="a b"})'),
        ("test-options{text=a(b,c)=d}", "builtin.module(test-options{text=a(b,c)=d})"),
        ("test-options{many_sizes=1}", "builtin.module(test-options{many-sizes=1})"),
        ("test-options{many-sizes={}}", "builtin.module(test-options{many-sizes={}})"),
        ("test-options{names=a,b}", "builtin.module(test-options{names=a,b})"),
        ("test-options{names={ 'a b' , c }}", 'builtin.module(test-options{names={"a b",c}})'),
    ],
)
def test_grammar(text: str, printed: str):
    assert str(passes.parse(text)) == printed
    assert str(passes.parse(printed)) == printed


@pytest.mark.parametrize(
    ("text", "at", "reason"),
    [
        ("cse,", 4, "expected the name of a pass, found the end"),
        ("cse,,cse", 4, "expected the name of a pass, found ','"),
        ("cse)", 3, "unmatched ')'"),
        ("cse cse", 4, "expected ',' after 'cse'"),
        ("func.func(cse", 9, "this '(' is never closed"),
        ("builtin.module(cse", 14, "this '(' is never closed"),
        ("func.func()", 10, "expected the name of a pass, found ')'"),
        ("canonicalise", 0, "unknown pass 'canonicalise'; did you mean 'canonicalize'?"),
        ("cse,srjit-inline", 4, "unknown pass 'srjit-inline'; did you mean 'srjit-inline-calls'"),
        ("cse{a=1}", 4, "no such option a"),
        ("func.func(sdy-close-shardings)", 10, "did you intend to nest"),
        ("test-options{", 12, "this '{' is never closed"),
        ("test-options{text='}", 12, "this '{' is never closed"),
        ("test-options{=1}", 13, "expected the name of an option"),
        ("test-options{cuont=1}", 13, "no option 'cuont'; did you mean 'count'?"),
        ("srjit-inline-calls{a=1}", 19, "no option 'a'; it has none"),
        ("test-options{count=x}", 19, "'count' of test-options has to be an integer, not 'x'"),
        ("test-options{count=}", 19, "has to be an integer, not ''"),
        ("test-options{count}", 13, "needs a value: count=..."),
        ("test-options{flag=maybe}", 18, "has to be true or false, not 'maybe'"),
        ("test-options{rate=fast}", 18, "has to be a number, not 'fast'"),
        ("test-options{kind=near}", 18, "one of nearest, stochastic, not 'near'"),
        ("test-options{many-sizes=1,b}", 24, "a list (a,b,c), each an integer, not 'b'"),
        ("test-options{count=1 count=2}", 21, "given twice"),
        ("cse,test-options{count=-1}", 4, "count cannot be negative"),
        ("func.func(test-options)", 10, "cannot be nested under 'func.func'"),
        ("test-options(cse)", 0, "is a pass, not an operation"),
        ("builtin.module(cse,\n\tnope)", 21, "unknown pass 'nope'"),
    ],
)
def test_errors_point_at_the_character(text: str, at: int, reason: str):
    with pytest.raises(passes.PipelineSyntaxError) as error:
        passes.parse(text)
    assert reason in error.value.reason
    assert error.value.position == at
    _, line, caret = str(error.value).split("\n")
    assert line[: len(caret) - 1].expandtabs().strip() in text.expandtabs()
    assert line[len(caret) - 1 :] == text[at:].partition("\n")[0]


def test_pipelines_are_built_from_passes_text_and_pipelines():
    built = Pipeline("cse", Options(count=2), Nested("func.func", (MlirPass("cse"),)))
    assert built == passes.parse("cse,test-options{count=2},func.func(cse)")
    assert Pipeline(built, "sccp") == passes.parse(f"{str(built)[15:-1]},sccp")
    assert {built: 1}[Pipeline(built)] == 1
    with pytest.raises(TypeError, match="expected a pass or a pipeline's text, got 3"):
        Pipeline(3)  # pyright: ignore


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
