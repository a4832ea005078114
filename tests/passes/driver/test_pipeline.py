"""Pipelines as text: their grammar, what they are built from, and what is refused."""

import dataclasses
from typing import Any, ClassVar, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srjit import passes
from srjit.passes import MlirPass, Nested, Pipeline


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
        (
            "cse,stablehlo-aggressive-folder",
            4,
            "'stablehlo-aggressive-folder': jaxlib's bindings have no such pass, stablehlo-opt may",
        ),
        ("chlo-legalise-to-stablehlo", 0, "did you mean 'chlo-legalize-to-stablehlo'"),
        ("sdy-nothing", 0, "jaxlib's bindings have no such pass, sdy_opt may"),
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


# ------------------------------------------------------------------- StableHLO's and CHLO's passes

_TAN = """func.func @main(%a: tensor<4xf32>) -> tensor<4xf32> {
  %0 = chlo.atan %a : tensor<4xf32> -> tensor<4xf32>
  return %0 : tensor<4xf32>
}"""
_CALLING = """func.func @main(%a: tensor<4xf32>) -> tensor<4xf32> {
  %0 = stablehlo.composite "a.b" %a {decomposition = @b} : (tensor<4xf32>) -> tensor<4xf32>
  return %0 : tensor<4xf32>
}
func.func private @b(%a: tensor<4xf32>) -> tensor<4xf32> {
  return %a : tensor<4xf32>
}"""
_CREATES = """func.func @main(%a: tensor<4xf32>, %b: tensor<1xi64>) -> tensor<?xf32> {
  %c = stablehlo.constant dense<4> : tensor<1xi64>
  %0 = stablehlo.dynamic_broadcast_in_dim %a, %c, dims = [0]
    : (tensor<4xf32>, tensor<1xi64>) -> tensor<?xf32>
  return %0 : tensor<?xf32>
}"""


@pytest.mark.parametrize(
    ("text", "module", "gone", "there"),
    [
        ("chlo-legalize-to-stablehlo", _TAN, "chlo.", "stablehlo.atan2"),
        ("func.func(chlo-legalize-to-stablehlo)", _TAN, "chlo.", "stablehlo.atan2"),
        ("stablehlo-legalize-composite-to-call", _CALLING, "composite", "call @b"),
        ("stablehlo-refine-shapes", _CREATES, "?", "-> tensor<4xf32>"),
        ("stablehlo-refine-shapes,stablehlo-canonicalize-dynamism", _CREATES, "dynamic", "in_dim"),
        ("stablehlo-legalize-to-vhlo", _CALLING, "stablehlo.", "vhlo.composite_v"),
        ("stablehlo-legalize-to-vhlo,vhlo-legalize-to-stablehlo", _CALLING, "vhlo", "stablehlo."),
    ],
)
def test_stablehlos_passes_run_by_name_and_nest_by_themselves(
    text: str, module: str, gone: str, there: str
):
    pipeline = passes.parse(text)
    assert passes.parse(str(pipeline)) == pipeline
    out = str(pipeline.run(module))
    assert gone not in out
    assert there in out
