"""Checkpoints of a pytree of arrays, with what is needed to refuse the wrong one.

A checkpoint is one `.npz` file: an array for each leaf, named by its path in the tree, and a JSON
header. It is written beside its final name and then renamed, so that a crash leaves either the old
checkpoint or the new one.
"""

import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np

_HEADER = "header"


class CheckpointError(Exception):
    """A checkpoint that is damaged, or that belongs to another run."""


def save(path: Path, tree: Any, header: dict[str, Any]) -> None:
    """Writes `tree` and the JSON-able `header` to `path`, atomically."""
    arrays = {name: np.asarray(leaf) for name, leaf in _named_leaves(tree).items()}
    arrays = {name: array.view(_stored(array.dtype)) for name, array in arrays.items()}
    unfinished = path.with_name(path.name + ".tmp")
    with open(unfinished, "wb") as file:
        np.savez(file, **{_HEADER: np.array(json.dumps(header))}, **arrays)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def load(path: Path, like: Any, run: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Reads what `save` wrote.

    Args:
        path: the file.
        like: a pytree with the structure, shapes and dtypes that are expected.
        run: what must be equal to the header's "run".

    Returns:
        The tree, and the header.

    Raises:
        CheckpointError: the file is damaged, or was written by a run with other settings.
    """
    arrays = _read(path)
    header = json.loads(str(arrays.pop(_HEADER)))
    _check_run(path, header["run"], run)
    return _fill(path, arrays, like), header


def _named_leaves(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(keys): leaf for keys, leaf in leaves}


def _stored(dtype: Any) -> np.dtype:
    """The dtype that a file has for another: NumPy's have no bfloat16, but bits of its size."""
    dtype = np.dtype(dtype)
    return np.dtype(f"u{dtype.itemsize}") if dtype.kind == "V" else dtype


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        arrays[_HEADER].item()
    except Exception as error:  # a damaged file makes numpy and zipfile raise almost anything
        raise CheckpointError(
            f"{path} is truncated or damaged ({error!r}). Delete it, or run without --resume."
        ) from error
    return arrays


def _check_run(path: Path, saved: dict[str, Any], run: dict[str, Any]) -> None:
    differing = sorted(k for k in saved.keys() | run.keys() if saved.get(k) != run.get(k))
    if differing:
        details = "; ".join(f"{k}: {saved.get(k)!r} there, {run.get(k)!r} here" for k in differing)
        raise CheckpointError(
            f"{path} was written by a run with other settings ({details}). "
            "Resume with the same settings, or choose another --out."
        )


def _fill(path: Path, arrays: dict[str, np.ndarray], like: Any) -> Any:
    wanted = _named_leaves(like)
    expected = {name: (leaf.shape, _stored(leaf.dtype)) for name, leaf in wanted.items()}
    present = {name: (array.shape, array.dtype) for name, array in arrays.items()}
    if expected != present:
        names = sorted(
            k for k in expected.keys() | present.keys() if expected.get(k) != present.get(k)
        )
        raise CheckpointError(
            f"{path} holds another state than this program's: {', '.join(names[:4])} "
            f"({len(names)} in all) differ in presence, shape or dtype. Run without --resume."
        )
    leaves = [jax.numpy.array(arrays[name].view(leaf.dtype)) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
