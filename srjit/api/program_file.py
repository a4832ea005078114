"""The file of an exported program: a zip archive of a header, a program, and a digest of both."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

_FORMAT = 3  # 1 had no digest; 2 is what no srjit wrote
_HEADER, _PROGRAM = "srjit.json", "program.jax_export"
# Bytes of what is inside, whatever it is compressed to: a flatbuffer holds no more.
_LARGEST = {_HEADER: 2**26, _PROGRAM: 2**31}


def written(header: Mapping[str, Any], program: bytes) -> bytes:
    """Returns the content of the file.

    Args:
      header: what JSON can keep.
      program: what ``jax.export`` wrote.
    """
    fields = {"format": _FORMAT, **header}
    text = json.dumps({**fields, "digest": _digest(fields, program)}, indent=1)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        # No dates, so that the same program is the same file.
        for name, content in ((_HEADER, text.encode()), (_PROGRAM, program)):
            archive.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


def read(content: bytes, what: str) -> tuple[dict[str, Any], bytes]:
    """The header and the program of a file's content.

    Args:
      content: of the file.
      what: messages call it.

    Raises:
      ValueError: it is no such file, is damaged, or is of another format.
    """
    try:
        fields, program = _parts(content)
    except Exception as error:  # zipfile and zlib raise a dozen types for damaged bytes
        raise ValueError(
            f"{what}: not a program that srjit.export wrote, or damaged ({error})"
        ) from error
    digest, of = fields.pop("digest", None), fields.pop("format", None)
    if type(of) is not int or of != _FORMAT:
        why = ", which had no digest of what is inside" if of == 1 and digest is None else ""
        raise ValueError(
            f"{what}: of format {of!r}{why}; this srjit reads {_FORMAT}: export the program again"
        )
    if digest != _digest({"format": of, **fields}, program):
        raise ValueError(
            f"{what}: damaged: its content is not what its digest was made of; copy the file "
            "again, or export the program again"
        )
    return fields, program


def _parts(content: bytes) -> tuple[dict[str, Any], bytes]:
    if not content:
        raise ValueError("it is empty")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        inside = archive.infolist()
        if sorted(i.filename for i in inside) != sorted(_LARGEST):
            raise ValueError(f"it holds {[i.filename for i in inside][:4]}, not {[*_LARGEST]}")
        for i in inside:
            if i.file_size > _LARGEST[i.filename]:
                raise ValueError(f"{i.filename} unpacks to {i.file_size} bytes, which are too many")
        header, program = archive.read(_HEADER), archive.read(_PROGRAM)
    fields = json.loads(header)
    if not isinstance(fields, dict):
        raise TypeError(f"{_HEADER} is a {type(fields).__name__}, not a table")
    return fields, program  # pyright: ignore[reportUnknownVariableType]


def _digest(fields: Mapping[str, Any], program: bytes) -> str:
    sha = hashlib.sha256(json.dumps(fields, sort_keys=True).encode() + b"\0")
    sha.update(program)
    return sha.hexdigest()
