"""Finding passes: srjit's own by their files, users' by the decorator and by entry points."""

import dataclasses
import importlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from srjit import passes
from srjit.passes.driver import registry
from srjit.passes.driver.options import options_of

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    """Passes of one test are unknown to the next."""
    known = {*registry._registered, *registry.builtin_names()}
    yield
    for name in set(registry._registered) - known:
        del registry._registered[name]


def define(name: str, **fields: Any) -> type[passes.Pass]:
    """An undecorated pass with the given options (type, default)."""
    annotations = {key: kind for key, (kind, _) in fields.items()}
    body = {key: default for key, (_, default) in fields.items()}
    made = type(
        "Made",
        (passes.Pass,),
        {
            "name": name,
            "__module__": __name__,
            "__annotations__": {"name": ClassVar[str], **annotations},
            "run": lambda self, module: None,
            **body,
        },
    )
    return dataclasses.dataclass(frozen=True, kw_only=True)(made)


@pytest.mark.parametrize("name", registry.builtin_names())
def test_each_file_holds_the_pass_that_it_is_named_after(name: str):
    cls = registry.find(name)
    assert cls.name == name
    assert cls.__module__ == f"srjit.passes.{name.removeprefix('srjit-').replace('-', '_')}"


@pytest.mark.parametrize("name", registry.builtin_names())
def test_each_pass_says_what_it_does_why_and_how_programs_look_afterwards(name: str):
    summary, blank, *rest = (registry.find(name).__doc__ or "").split("\n")
    assert summary.endswith(".")
    assert not blank
    assert any("Before ==> after:" in line for line in rest)
    options = {option.field for option in options_of(registry.find(name)).values()}
    said = "\n".join(base.__doc__ or "" for base in registry.find(name).__mro__).split("\n")
    assert all(any(line.strip().startswith(f"{field}:") for line in said) for field in options)


def test_neither_looking_up_nor_listing_names_imports_a_pass():
    program = (
        "import sys; from srjit.passes.driver import registry; registry.names();"
        "loaded = [m for m in sys.modules if m.startswith('srjit.passes.')];"
        "assert not any('inline' in m for m in loaded), loaded; assert 'jax' not in sys.modules;"
        "registry.find('srjit-inline-calls');"
        "assert 'srjit.passes.inline_calls' in sys.modules and 'jax' not in sys.modules;"
        "assert 'srjit.passes.strip_annotations' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)


def test_a_decorated_pass_is_found_and_listed():
    cls = passes.register(define("my-pass", limit=(int, 3)))
    assert registry.find("my-pass") is cls
    assert "my-pass" in registry.names()
    assert passes.parse("my-pass{limit=4}").elements == (cls(limit=4),)


def test_a_pass_that_is_defined_again_replaces_itself():
    passes.register(define("my-pass"))
    again = passes.register(define("my-pass", x=(int, 0)))
    assert registry.find("my-pass") is again


def test_two_passes_of_one_name_are_refused():
    passes.register(define("my-pass"))
    other = define("my-pass")
    other.__qualname__ = "Other"
    with pytest.raises(ValueError, match=r"Made is called 'my-pass' already"):
        passes.register(other)
    with pytest.raises(ValueError, match="a pass of srjit's own"):
        passes.register(define("srjit-inline-calls"))


@pytest.mark.parametrize("name", ["", "My-Pass", "my_pass", "a b", "a{", "-a"])
def test_a_malformed_name_is_refused(name: str):
    with pytest.raises(ValueError, match="has to be like 'my-pass-2'"):
        passes.register(define(name))


def test_options_that_no_text_stands_for_are_refused():
    with pytest.raises(TypeError, match=r"option 'x' of Made has type .*dict.*; it has to be str"):
        passes.register(define("my-pass", x=(dict[str, int], None)))
    with pytest.raises(TypeError, match="option 'x' of Made needs a default"):
        passes.register(define("my-pass", x=(int, dataclasses.MISSING)))


def test_what_is_no_frozen_dataclass_is_refused():
    class Plain(passes.Pass):
        name = "my-pass"

        def run(self, module: Any) -> None: ...

    with pytest.raises(TypeError, match="Plain has to be a frozen dataclass: write @register"):
        passes.register(Plain)


def test_an_unknown_name_suggests_near_ones():
    with pytest.raises(passes.UnknownPassError, match="did you mean 'srjit-inline-calls'"):
        registry.find("srjit-inline-call")


@pytest.fixture
def entry_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A distribution with a pass, a module that registers one, and two that are broken."""
    (tmp_path / "their_passes.py").write_text(
        "import dataclasses\n"
        "from srjit.passes import Pass, register\n"
        "@dataclasses.dataclass(frozen=True)\n"
        "class Theirs(Pass):\n"
        "    '''Nothing.'''\n"
        "    name = 'their-pass'\n"
        "    def run(self, module): pass\n"
    )
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[srjit.passes]\ntheir-pass = their_passes:Theirs\n"
        "their-broken = their_passes:Nothing\nmisnamed = their_passes:Theirs\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.invalidate_caches()
    registry._entry_points.cache_clear()
    yield
    registry._entry_points.cache_clear()
    sys.modules.pop("their_passes", None)


@pytest.mark.usefixtures("entry_points")
def test_a_distribution_gives_passes_by_entry_points():
    assert {"their-pass", "their-broken"} <= set(registry.names())
    assert passes.parse("their-pass").elements[0].name == "their-pass"  # pyright: ignore


@pytest.mark.usefixtures("entry_points")
@pytest.mark.parametrize("name", ["their-broken", "misnamed"])
def test_a_broken_entry_point_says_whose_it_is(name: str):
    with pytest.raises(passes.PipelineSyntaxError, match=rf"entry point {name} = .* of theirs 1.0"):
        passes.parse(name)
