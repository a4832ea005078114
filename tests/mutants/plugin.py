"""A pytest plugin that plants the mutant which SRJIT_MUTANT names before srjit is imported."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import os
import sys
from collections.abc import Sequence
from types import CodeType, ModuleType
from typing import Any

from mutants.catalogue import MUTANTS
from mutants.mutant import Mutant


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a module with a mistake in it."""

    mutant: Mutant

    def get_code(self, fullname: str) -> CodeType:
        source = self.get_source(fullname)
        found = source.count(self.mutant.old)
        if found != 1:
            raise AssertionError(
                f"{self.path} has {found} times, not once:\n    {self.mutant.old}\n"
                "bring the catalogue in tests/mutants up to date with it"
            )
        return compile(source.replace(self.mutant.old, self.mutant.new), self.path, "exec")


class _Finder(importlib.abc.MetaPathFinder):
    """Finds one module, for ``_Loader``."""

    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> Any:
        if fullname != self.mutant.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        spec.loader = _Loader(fullname, spec.origin)
        spec.loader.mutant = self.mutant
        return spec


def plant(mutant: Mutant) -> None:
    """Makes the next import of the mutant's module import the mutant."""
    assert not any(name.split(".")[0] == "srjit" for name in sys.modules), (
        "srjit is imported already"
    )
    sys.meta_path.insert(0, _Finder(mutant))


if "SRJIT_MUTANT" in os.environ:
    plant(MUTANTS[os.environ["SRJIT_MUTANT"]])
