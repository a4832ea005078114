"""TOML files of recipes: whatever is wrong with one is said, with its name, in linear time."""

from __future__ import annotations

import codecs
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from srjit import recipes
from srjit.recipes import Recipe, RecipeError

TEXT = recipes.get("mxfp4").to_toml()


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_files_may_begin_with_a_mark_and_end_lines_either_way(
    tmp_path: Path, mark: bytes, newline: str
):
    path = tmp_path / "mine.toml"
    path.write_bytes(mark + TEXT.replace("\n", newline).encode())
    assert Recipe.load(path) == recipes.get("mxfp4") == recipes.get(str(path))
    assert Recipe.from_toml("\ufeff" + TEXT) == recipes.get("mxfp4")


WRONG: dict[str, tuple[bytes, str]] = {
    "utf-16": (TEXT.encode("utf-16"), "UTF-16 text: save it as UTF-8"),
    "utf-32": (TEXT.encode("utf-32"), "UTF-32 text: save it as UTF-8"),
    "latin-1": (b'name = "x"\nsource = "\xe9"\n', "line 2: recipe is not UTF-8.*0xe9"),
    "empty": (b"", "a recipe needs name"),
    "binary": (bytes(range(256)), "not UTF-8"),
    "key twice": (b'name = "x"\nname = "y"\n', """at line 2.*name = "y"'"""),
    "table twice": (b'name="x"\n[[rule]]\n[rule.fprop]\n[rule.fprop]\n', "fprop.*line 4"),
    "unknown key": (b'name = "x"\n\nkeep_frst = 1\n', "line 3: unknown recipe key 'keep_frst'"),
    "in a table": (
        b'name="x"\n[[rule]]\n# [\n[rule.fprop]\nweight={format="int8",blok=3}',
        "line 5: unknown quantization key 'blok'",
    ),
    "in a deep table": (
        b'name="x"\n[[rule]]\npath="a"\n[[rule]]\n[rule.fprop.weight]\nformat="int8"\nblock="x"',
        "line 7: fprop.weight: block is a whole number",
    ),
    "after a long string": (
        b'source = """\n[[rule]]\nkeep_first = 3\n"""\nname = "x"\nkeep_first = "a"\n',
        "line 6: keep_first is a number",
    ),
    "after an array": (b'name = "x"\nkeep_last = [\n1,\n2]\n', "line 2: keep_last is a number"),
    "deep": (b"a = " + b"[" * 20_000, "not TOML"),
    "a long number": (b'name = "x"\nkeep_first = ' + b"9" * 9999, "not TOML"),
}


@pytest.mark.parametrize("what", WRONG)
def test_errors_name_the_file_and_the_line(what: str, tmp_path: Path):
    content, said = WRONG[what]
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match=rf"mine\.toml: .*{said}"):
        Recipe.load(path)


LONG: dict[str, Callable[[int], str]] = {
    "comments": lambda n: TEXT + "# [\n" * n + "wrong = 1\n",
    "rules": lambda n: TEXT + '\n[[rule]]\npath = "a"' * n + "\nwrong = 1\n",
    "a string": lambda n: 'name = "x"\nsource = """' + "x\n" * n + '"""\nwrong = 1\n',
    "dots": lambda n: ".".join("a" * n) + " = 1",
    "quoted dots": lambda n: "[" + ".".join(['"a"'] * n) + "]",
    "dots in a table": lambda n: "a = {" + ".".join("a" * n) + " = 1}",
    "escapes": lambda n: 'a = "' + "\\" * n,
    "quotes": lambda n: 'a = "' + "'" * n,
    "three quotes": lambda n: "a = " + '"' * n,
    "brackets": lambda n: "a = " + "[" * n + "]" * n,
}


@pytest.mark.parametrize("what", LONG)
def test_long_and_hostile_files_take_linear_time(what: str):
    seconds: list[float] = []
    for count in (1000, 8000):
        tries: list[float] = []
        for _ in range(3):
            began = time.process_time()
            with pytest.raises(RecipeError):
                Recipe.from_toml(LONG[what](count))
            tries.append(time.process_time() - began)
        seconds.append(min(tries))
    assert seconds[1] < 30 * seconds[0] + 0.02  # quadratic is 64
