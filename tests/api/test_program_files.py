"""Files of exported programs: whatever is damaged is refused, with the file's name."""

from __future__ import annotations

import io
import json
import random
import zipfile
from pathlib import Path
from typing import Any

import jax.export
import numpy as np
import pytest

import srjit
from srjit.api import program_file
from steps import W, X, same, step

FUNCTION = srjit.srjit(step, recipe="int8")
CONTENT = srjit.export(FUNCTION, W, X).serialize()
HEADER, PROGRAM = program_file.read(CONTENT, "the test")
JSON: dict[str, Any] = json.loads(zipfile.ZipFile(io.BytesIO(CONTENT)).read("srjit.json"))


def rebuilt(header: Any, program: bytes = PROGRAM, **more: bytes) -> bytes:
    """A whole zip archive, whatever is in it."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        archive.writestr("srjit.json", text)
        archive.writestr("program.jax_export", program)
        for name, content in more.items():
            archive.writestr(name, content)
    return out.getvalue()


def npz() -> bytes:
    out = io.BytesIO()
    np.savez(out, a=np.ones(3))
    return out.getvalue()


def patched(offset_in_entry: int, value: bytes) -> bytes:
    """The file with a field of its first entry changed, in both of the places where it stands."""
    content = bytearray(CONTENT)
    for signature, further in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
        at = content.find(signature) + offset_in_entry + further
        content[at : at + len(value)] = value
    return bytes(content)


def bomb() -> bytes:
    """A program that says it unpacks to 3 GB."""
    content = bytearray(CONTENT)
    for signature, field in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = content.rfind(signature) + field
        content[at : at + 4] = (3 * 10**9).to_bytes(4, "little")
    return bytes(content)


def flipped(data: bytes, bit: int) -> bytes:
    changed = bytearray(data)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def without(name: str) -> dict[str, Any]:
    return {k: v for k, v in JSON.items() if k != name}


DAMAGED = {
    "empty": b"",
    "text": b"hello",
    "npz": npz(),
    "list": rebuilt([1]),
    "null": rebuilt(b"null"),
    "number": rebuilt(b"7"),
    "bad json": rebuilt(b"{"),
    "deep json": rebuilt(b"[" * 100_000),
    "not utf-8": rebuilt(b"\xff\xfe"),
    **{f"no {name}": rebuilt(without(name)) for name in JSON},
    **{f"{name} null": rebuilt({**JSON, name: None}) for name in JSON},
    **{f"{name} a table": rebuilt({**JSON, name: {}}) for name in JSON},
    **{f"{name} text": rebuilt({**JSON, name: "x"}) for name in JSON},
    "more in the header": rebuilt({**JSON, "more": 1}),
    "newer": rebuilt({**JSON, "format": 4}),
    "older": rebuilt({**without("digest"), "format": 1}),
    "format as text": rebuilt({**JSON, "format": "1"}),
    "format as a truth": rebuilt({**JSON, "format": True}),
    "no program": rebuilt(JSON, b""),
    "short program": rebuilt(JSON, PROGRAM[:50]),
    "junk": rebuilt(JSON, random.Random(0).randbytes(500)),
    "one more inside": rebuilt(JSON, other=b"1"),
    "unknown compression": patched(8, b"\x63\x00"),
    "lzma": patched(8, b"\x0e\x00"),
    "encrypted": patched(6, b"\x01\x00"),
    "needs a newer zip": patched(4, b"\xff\x00"),
    "bomb": bomb(),
}


@pytest.mark.parametrize("what", DAMAGED)
def test_what_is_damaged_is_a_value_error_with_the_files_name(what: str, tmp_path: Path):
    path = tmp_path / "some.srjit"
    path.write_bytes(DAMAGED[what])
    with pytest.raises(ValueError, match=r"some\.srjit: "):
        srjit.load(path)
    with pytest.raises(ValueError, match=r"^the bytes: "):
        srjit.load(DAMAGED[what])


def test_folders_are_no_programs_and_a_missing_file_is_missing(tmp_path: Path):
    with pytest.raises(ValueError, match="a folder"):
        srjit.load(tmp_path)
    with pytest.raises(FileNotFoundError):
        srjit.load(tmp_path / "none")


def test_older_files_say_what_to_do():
    with pytest.raises(
        ValueError, match=r"format 1, which had no digest.*export the program again"
    ):
        srjit.load(DAMAGED["older"])


def test_every_bit_of_the_program_counts():
    bits = random.Random(1).sample(range(8 * len(PROGRAM)), 200)
    for bit in (0, *bits, 8 * len(PROGRAM) - 1):
        with pytest.raises(ValueError, match="damaged"):
            srjit.load(rebuilt(JSON, flipped(PROGRAM, bit)))


def test_a_file_that_is_cut_off_is_refused_wherever():
    for length in range(len(CONTENT)):
        with pytest.raises(ValueError, match="damaged"):
            program_file.read(CONTENT[:length], "it")


def test_a_flipped_bit_of_the_file_is_refused_or_changes_nothing():
    """Dates and attributes, which zip archives have too, mean nothing."""
    refused = 0
    entries = [i for i in range(len(CONTENT)) if CONTENT[i : i + 2] == b"PK"]
    headers = {j for i in entries for j in range(i, min(i + 80, len(CONTENT)))}
    others = random.Random(2).sample(range(len(CONTENT)), 300)
    for byte in sorted(headers | {*others}):
        for bit in range(8):
            try:
                read = program_file.read(flipped(CONTENT, 8 * byte + bit), "it")
            except ValueError:
                refused += 1
            else:
                assert read == (HEADER, PROGRAM)
    assert refused > 2000


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"origin": "elsewhere"}, "origin"),
        ({"key": "maybe"}, "key"),
        ({"donated": "abc"}, "donated"),
        ({"states": [1]}, "states"),
        ({"more": 1}, "more"),
    ],
)
def test_a_header_with_a_digest_of_its_own_is_looked_at_too(changed: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=f"^the bytes: its header is not .*{said}"):
        srjit.load(program_file.written({**HEADER, **changed}, PROGRAM))


def test_a_program_that_jax_cannot_read_names_the_file(tmp_path: Path):
    (tmp_path / "junk.srjit").write_bytes(program_file.written(HEADER, b"\x04\0\0\0junk" * 9))
    with pytest.raises(ValueError, match=r"junk\.srjit: "):
        srjit.load(tmp_path / "junk.srjit")


def test_what_is_rebuilt_whole_is_the_same_program():
    assert same(srjit.load(rebuilt(JSON))(W, X, sr_key=0), FUNCTION(W, X, sr_key=0))
    assert jax.export.deserialize(bytearray(PROGRAM)).nr_devices == 1
