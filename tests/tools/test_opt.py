"""srjit-opt: what it reads, runs, prints and writes, and what bad input gets."""

import dataclasses
import io
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from srjit.passes.driver import registry
from srjit.tools import opt

ROOT = Path(__file__).parents[2]
MODULE = """\
func.func private @double(%x: tensor<2xf32>) -> tensor<2xf32> {
  %0 = stablehlo.add %x, %x : tensor<2xf32>
  return %0 : tensor<2xf32>
}
func.func @main(%x: tensor<2xf32>) -> tensor<2xf32> {
  %0 = call @double(%x) : (tensor<2xf32>) -> tensor<2xf32>
  return %0 : tensor<2xf32>
}
"""
INLINED = """\
module {
  func.func @main(%arg0: tensor<2xf32>) -> tensor<2xf32> {
    %0 = stablehlo.add %arg0, %arg0 : tensor<2xf32>
    return %0 : tensor<2xf32>
  }
}
"""


@dataclasses.dataclass
class Ran:
    status: int
    out: str
    err: str


class Shell:
    """Runs srjit-opt in this process, in a folder of its own."""

    def __init__(self, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
        self.capfd, self.monkeypatch = capfd, monkeypatch

    def __call__(self, *argv: str, stdin: str | bytes = "") -> Ran:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        self.monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        self.capfd.readouterr()
        try:
            status = opt.main(argv)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 1
        sys.stdout.flush()
        out, err = self.capfd.readouterr()
        return Ran(status, out, err)


@pytest.fixture
def shell(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Shell:
    monkeypatch.chdir(tmp_path)
    Path("in.mlir").write_text(MODULE)
    return Shell(capfd, monkeypatch)


# ------------------------------------------------------------------------------ input and pipelines


@pytest.mark.parametrize(
    "argv",
    [
        ("-p", "srjit-inline-calls"),
        ("--pass-pipeline=builtin.module(srjit-inline-calls)",),
        ("-pass-pipeline=srjit-inline-calls",),
        ("--srjit-inline-calls",),
        ("-srjit-inline-calls", "--canonicalize", "--srjit-strip-annotations=interface=true"),
        ("--srjit-inline-calls", "--verify-each=false"),
    ],
)
def test_passes_are_given_as_a_pipeline_or_as_flags(argv: tuple[str, ...], shell: Shell):
    assert shell("in.mlir", *argv) == Ran(0, INLINED, "")
    assert shell(*argv, "in.mlir") == Ran(0, INLINED, "")


@pytest.mark.parametrize("argv", [(), ("-",)])
def test_standard_input_is_read_where_no_file_is_named(argv: tuple[str, ...], shell: Shell):
    assert shell(*argv, "--srjit-inline-calls", stdin=MODULE) == Ran(0, INLINED, "")


def test_flags_run_in_the_order_given(shell: Shell):
    ran = shell("in.mlir", "--cse", "--srjit-inline-calls", "--sccp", "--dump-pass-pipeline")
    assert "builtin.module(cse,srjit-inline-calls,sccp)" in ran.err


def test_a_dumped_pipeline_can_be_given_back(shell: Shell):
    text = "builtin.module(srjit-strip-annotations{interface=true},func.func(cse))"
    ran = shell("in.mlir", "-p", text, "--dump-pass-pipeline")
    assert ran.err.splitlines() == ["Pass Manager with 2 passes:", text, ""]


@pytest.mark.parametrize("flag", ["--emit-bytecode", "--emit-portable-artifact"])
def test_bytecode_and_artifacts_go_both_ways(flag: str, shell: Shell):
    assert shell("in.mlir", flag, "-o", "out.bc").status == 0
    data = Path("out.bc").read_bytes()
    assert data.startswith(b"ML\xefR")
    assert shell("out.bc", "--srjit-inline-calls").out == INLINED
    assert shell("--srjit-inline-calls", stdin=data).out == INLINED
    assert shell("out.bc", flag, "-o", "again.bc").status == 0


def test_an_artifact_of_an_impossible_version_is_refused(shell: Shell):
    ran = shell("in.mlir", "--emit-portable-artifact=99.0.0")
    assert ran.status == 1
    assert "no portable artifact of version 99.0.0" in ran.err


def test_the_printed_form_can_be_chosen(shell: Shell):
    assert '"func.func"() <{' in shell("in.mlir", "--mlir-print-op-generic").out
    assert 'loc("in.mlir":2:8)' in shell(
        *("in.mlir", "--mlir-print-debuginfo", "--mlir-print-local-scope")
    ).out  # fmt: skip
    constant = "func.func @f() {\n%0 = stablehlo.constant dense<[1, 2, 3]> : tensor<3xi32>\nreturn}"
    elided = shell("--mlir-elide-elementsattrs-if-larger=2", stdin=constant).out
    assert "dense_resource<__elided__>" in elided


def test_unknown_dialects_are_parsed_on_request(shell: Shell):
    assert shell(stdin='"their.op"() : () -> ()').status == 1
    ran = shell("--allow-unregistered-dialect", stdin='"their.op"() : () -> ()')
    assert '"their.op"() : () -> ()' in ran.out


def test_passes_are_listed_with_those_of_plugins(shell: Shell):
    Path("plugin.py").write_text(
        "import dataclasses\nfrom srjit.passes import Pass, register\n"
        "@register\n@dataclasses.dataclass(frozen=True)\nclass Plugged(Pass):\n"
        "    '''Does nothing.'''\n    name = 'plugged'\n    size: int = 4\n"
        "    def run(self, module): pass\n"
    )
    listed = shell("--list-passes", "--load-pass-plugin=plugin.py").out
    assert "plugged\n    Does nothing.\n    size=4\n" in listed
    assert "srjit-inline-calls\n    Inlines calls of private functions" in listed
    assert shell("in.mlir", "--load-pass-plugin", "plugin.py", "--plugged=size=3").status == 0
    registry._registered.pop("plugged")


# -------------------------------------------------------------------------------------- split input


def test_parts_of_a_file_are_treated_one_by_one(shell: Shell):
    ran = shell("--split-input-file", "--srjit-inline-calls", stdin=f"{MODULE}// -----\n{MODULE}")
    assert ran == Ran(0, f"{INLINED}// -----\n{INLINED}", "")


def test_lines_are_counted_from_the_beginning_of_the_file(shell: Shell):
    Path("two.mlir").write_text(f"{MODULE}\n// -----\n\nfunc.func @f() {{\n  nope\n}}\n")
    ran = shell("two.mlir", "--split-input-file")
    assert ran.status == 1
    assert ran.err.startswith("two.mlir:13:3: error: ")
    assert ran.err.splitlines()[1:] == ["  nope", "  ^"]
    assert "@main" in ran.out  # the good part


def test_a_mark_within_a_line_does_not_split(shell: Shell):
    text = f"// like this: // -----\n{MODULE}"
    assert "// -----" not in shell("--split-input-file", stdin=text).out


# ------------------------------------------------------------------------------- verify diagnostics

FAILING = "func.func @f() {\n%s\n  nope %s\n%s\n}\n"


@pytest.mark.parametrize(
    "text",
    [
        "func.func @f() {\n  nope // expected-error {{custom op 'nope' is unknown}}\n}\n",
        "func.func @f() {\n// expected-error@+1 {{custom op 'nope'}}\n  nope\n}\n",
        "func.func @f() {\n  nope\n// expected-error@-1 {{custom op 'nope'}}\n}\n",
        "func.func @f() {\n// expected-error@below {{custom op}}\n  nope\n}\n",
        "func.func @f() {\n  nope\n// expected-error @above {{custom op}}\n}\n",
        "func.func @f() {\n// expected-error-re@+1 {{op '{{n.*}}' is}}\n  nope\n}\n",
    ],
)
def test_expected_diagnostics_are_a_success(text: str, shell: Shell):
    assert shell("--verify-diagnostics", stdin=text) == Ran(0, "", "")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("func.func @f() {\n  nope\n}\n", "<stdin>:2: error: unexpected error: custom op 'nope'"),
        (
            "// expected-error@+1 {{no such thing}}\nfunc.func @f() { return }\n",
            '<stdin>:1: error: expected error "no such thing" was not produced',
        ),
        (
            "func.func @f() {\n// expected-warning@+1 {{custom op}}\n  nope\n}\n",
            "<stdin>:3: error: 'error' diagnostic where 'warning' is expected: custom op",
        ),
        (
            "// expected-error@+1 {{custom op}}\nfunc.func @f() {\n  nope\n}\n",
            "<stdin>:3: error: unexpected error: custom op",
        ),
        (
            "func.func @f() {\n// expected-error@+1 {{custom.*op}}\n  nope\n}\n",
            "<stdin>:3: error: unexpected error: custom op",
        ),
    ],
)
def test_other_diagnostics_are_a_failure(text: str, complaint: str, shell: Shell):
    ran = shell("--verify-diagnostics", stdin=text)
    assert ran.status == 1
    assert complaint in ran.err


def test_each_expectation_is_met_once(shell: Shell):
    twice = "// expected-error@+2 {{custom op}}\n// expected-error@+1 {{custom op}}\nnope\n"
    ran = shell("--verify-diagnostics", stdin=twice)
    assert ran.status == 1
    assert ran.err.count("was not produced") == 1


def test_notes_have_to_be_expected_too(shell: Shell):
    function = "func.func @f() { return }\n"
    text = f"{function}// expected-error@+1 {{{{redefinition}}}}\n{function}"
    noted = f"// expected-note@+1 {{{{existing symbol}}}}\n{text}"
    assert "unexpected note" in shell("--verify-diagnostics", stdin=text).err
    assert shell("--verify-diagnostics", stdin=noted).status == 0
    assert shell("--verify-diagnostics=only-expected", stdin=text).status == 0


# ----------------------------------------------------------------------------------------- printing


def test_programs_are_printed_around_passes(shell: Shell):
    both = shell("in.mlir", "--srjit-inline-calls", "--cse", "--mlir-print-ir-after-all")
    assert both.err.count("IR Dump After") == 2
    changed = shell("in.mlir", "--srjit-inline-calls", "--cse", "--mlir-print-ir-after-change")
    assert "After InlineCalls: srjit-inline-calls" in changed.err
    assert changed.err.count("IR Dump After") == 1
    named = shell(
        "in.mlir", "-p", "srjit-inline-calls,func.func(cse)", "--mlir-print-ir-before=cse"
    )
    assert named.err.count("IR Dump Before cse ('func.func' operation: @main)") == 1
    failing = ("--srjit-verify-deterministic", "--mlir-print-ir-after-failure")
    assert shell("in.mlir", "--cse", *failing).err == ""
    failed = shell(
        "--cse",
        *failing,
        stdin=MODULE.replace(
            "@main(%x: tensor<2xf32>)", "@main(%x: tensor<2xf32> {srjit.key = true})"
        ),
    )
    assert "IR Dump After VerifyDeterministic Failed" in failed.err
    assert "IR Dump After CSE" not in failed.err
    assert (
        shell("in.mlir", "--cse", "--mlir-print-ir-after-all", "--mlir-print-ir-tree-dir=t").err
        == ""
    )
    assert list(Path("t").rglob("0_cse.mlir"))


def test_times_are_printed(shell: Shell):
    assert "InlineCalls" in shell("in.mlir", "--srjit-inline-calls", "--mlir-timing").err


# ---------------------------------------------------------------------------------------- bad input


def test_malformed_mlir_gives_mlirs_diagnostic_and_fails(shell: Shell):
    Path("bad.mlir").write_text("func.func @main() {\n\t nope\n}")
    ran = shell("bad.mlir")
    assert ran.status == 1
    assert ran.err.startswith("bad.mlir:2:3: error: custom op 'nope' is unknown")
    assert ran.err.splitlines()[1:] == ["\t nope", "\t ^"]
    assert ran.out == ""


def test_truncated_bytecode_fails(shell: Shell):
    shell("in.mlir", "--emit-bytecode", "-o", "out.bc")
    for cut in (5, 30, 100):
        ran = shell(stdin=Path("out.bc").read_bytes()[:cut])
        assert ran.status == 1
        assert "error: " in ran.err
    shell("in.mlir", "--emit-portable-artifact", "-o", "out.bc")
    assert shell(stdin=Path("out.bc").read_bytes()[:60]).status == 1


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (("-p", "cse,(sccp)"), "found '('\n  cse,(sccp)\n      ^"),
        (("--srjit-inline-call",), "is neither a flag nor a pass; did you mean '--srjit-inline-c"),
        (("--split-input-fil",), "did you mean '--split-input-file'"),
        (("--srjit-strip-annotations=interface=2",), "has to be true or false, not '2'"),
        (("--cse", "-p", "cse"), "either by -p or by flags"),
        (("in.mlir",), "one input at a time"),
        (("--load-pass-plugin=nowhere",), "the plugin 'nowhere' cannot be loaded: ModuleNotFound"),
    ],
)
def test_bad_arguments_are_explained(argv: tuple[str, ...], complaint: str, shell: Shell):
    ran = shell("in.mlir", *argv)
    assert ran.status != 0
    assert ran.out == ""
    assert complaint in ran.err


def test_what_cannot_be_read_is_named(shell: Shell):
    assert shell("nowhere.mlir") == Ran(
        1, "", "srjit-opt: cannot read 'nowhere.mlir': No such file or directory\n"
    )
    assert "neither bytecode nor UTF-8" in shell(stdin=b"\xff\xfe").err


def test_a_module_without_main_goes_through(shell: Shell):
    assert (
        shell("-p", "srjit-inline-calls,srjit-verify-deterministic", stdin="module {}").status == 0
    )
    assert shell("--srjit-inline-calls", stdin="").out == "module {\n}\n"


# ------------------------------------------------------------------------------------------- output


def test_a_file_is_written_only_if_all_went_well(shell: Shell):
    Path("out.mlir").write_text("precious")
    os.chmod("out.mlir", 0o640)
    assert shell("-o", "out.mlir", stdin="nope").status == 1
    assert Path("out.mlir").read_text() == "precious"
    assert shell("in.mlir", "--srjit-inline-calls", "-o", "out.mlir") == Ran(0, "", "")
    assert Path("out.mlir").read_text() == INLINED
    assert stat.S_IMODE(os.stat("out.mlir").st_mode) == 0o640
    assert not list(Path(".").glob("tmp*"))


def test_the_input_can_be_the_output(shell: Shell):
    assert shell("in.mlir", "--srjit-inline-calls", "-o", "in.mlir").status == 0
    assert Path("in.mlir").read_text() == INLINED


@pytest.mark.parametrize(
    ("output", "reason"),
    [("nowhere/out.mlir", "there is no folder"), (".", "it is a folder")],
)
def test_an_output_that_cannot_be_written_is_said_before_the_work(
    output: str, reason: str, shell: Shell
):
    ran = shell("in.mlir", "--srjit-inline-calls", "--mlir-timing", "-o", output)
    assert ran.status == 1
    assert ran.err.startswith(f"srjit-opt: cannot write {output!r}: {reason}")
    assert "Execution time" not in ran.err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is full")
def test_a_result_that_cannot_be_written_after_all_is_not_lost(shell: Shell):
    ran = shell("in.mlir", "--srjit-inline-calls", "-o", "/dev/full")
    assert ran.status == 1
    assert "No space left" in ran.err
    saved = Path(ran.err.rpartition("the result is in ")[2].strip().strip("'"))
    assert saved.read_text() == INLINED
    saved.unlink()


def test_devices_are_written_rather_than_replaced(shell: Shell):
    assert shell("in.mlir", "-o", os.devnull) == Ran(0, "", "")
    assert not Path(os.devnull).is_file()


# ---------------------------------------------------------------------------------------- processes


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "srjit.tools.opt", *argv],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )


def test_the_command_neither_needs_nor_imports_jax():
    program = "import sys; from srjit.tools import opt; assert opt.main() == 0; "
    program += "assert 'jax' not in sys.modules"
    ran = subprocess.run(
        [sys.executable, "-c", program, "--srjit-inline-calls", "--srjit-verify-deterministic"],
        input=MODULE,
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert ran.stdout == INLINED


def test_the_exit_status_is_that_of_the_work():
    assert run("--list-passes").returncode == 0
    assert run("nowhere.mlir").returncode == 1


def test_a_reader_that_goes_away_is_no_error():
    command = f"{sys.executable} -m srjit.tools.opt --list-passes | head -c 1"
    ran = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert (ran.stdout, ran.stderr) == ("s", "")
