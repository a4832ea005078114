"""Real text that every machine has: the sources of the Python standard library, as bytes.

Whole files are held out for validation, chosen by a hash of their relative name, so that the split
is the same wherever the same Python is installed. A batch is a pure function of (seed, step):
nothing has to be remembered to resume a run in the middle.
"""

import dataclasses
import functools
import hashlib
import sysconfig
from pathlib import Path

import numpy as np

VOCABULARY = 256
HELD_OUT_OF_256 = 26  # about a tenth of the files

_LEFT_OUT = frozenset(
    {
        *("site-packages", "dist-packages"),  # are not the library
        *("test", "tests", "idle_test"),  # are missing from some distributions
        "encodings",  # generated tables, near copies of one another: they would leak
        "pydoc_data",  # one generated file that would be half of the held-out text
    }
)


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Two streams of bytes.

    Attributes:
        train: uint8 array, the training files one after the other.
        held_out: uint8 array, the validation files one after the other.
        fingerprint: identifies the text; differs between Python versions.
    """

    train: np.ndarray
    held_out: np.ndarray
    fingerprint: str


def library_files() -> dict[str, Path]:
    """The standard library's `.py` files by relative POSIX name, sorted by that name."""
    root = Path(sysconfig.get_path("stdlib"))
    found = (path.relative_to(root) for path in root.rglob("*.py"))
    kept = (path for path in found if _LEFT_OUT.isdisjoint(path.parts))
    return {name: root / name for name in sorted(path.as_posix() for path in kept)}


def is_held_out(name: str) -> bool:
    """True if the file of this relative name belongs to the validation split."""
    return hashlib.sha256(name.encode()).digest()[0] < HELD_OUT_OF_256


@functools.cache
def load_corpus() -> Corpus:
    """Reads the standard library, split by whole files."""
    files = library_files()
    held_out = _read([path for name, path in files.items() if is_held_out(name)])
    train = _read([path for name, path in files.items() if not is_held_out(name)])
    digest = hashlib.sha256(train.tobytes() + held_out.tobytes())
    return Corpus(train, held_out, digest.hexdigest()[:16])


def training_batch(text: np.ndarray, seed: int, step: int, batch: int, seq: int) -> np.ndarray:
    """The batch of one step, whichever steps were taken before it.

    Returns:
        int32 array (batch, seq + 1): inputs are `[:, :-1]`, targets are `[:, 1:]`.
    """
    starts = np.random.default_rng([seed, step]).integers(0, text.size - seq, size=batch)
    return _windows(text, starts, seq)


def validation_batches(text: np.ndarray, seq: int, windows: int, batch: int) -> list[np.ndarray]:
    """Evenly spaced windows of the held-out text, in batches: the same for every run."""
    starts = np.linspace(0, text.size - seq - 1, windows).astype(np.int64)
    return [_windows(text, starts[i : i + batch], seq) for i in range(0, windows, batch)]


def _read(paths: list[Path]) -> np.ndarray:
    return np.frombuffer(b"".join(path.read_bytes() for path in paths), np.uint8)


def _windows(text: np.ndarray, starts: np.ndarray, seq: int) -> np.ndarray:
    return text[starts[:, None] + np.arange(seq + 1)].astype(np.int32)
