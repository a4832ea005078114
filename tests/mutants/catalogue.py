"""The planted mistakes: what replaces what in the source, and which tests must fail then.

A new mutant is an entry of ``MUTANTS`` in the file of its subject. Its ``old`` text has to occur
exactly once in the module, and each of ``killed_by`` has to fail, and be part of ``make test``.
``test_mutants.py`` sees to the former, ``run.py`` (``make mutants``) to the latter.
"""

from __future__ import annotations

from mutants import diagnostics, meshes, numerics, programs, roles

MUTANTS = {
    name: mutant
    for file in (numerics, programs, meshes, roles, diagnostics)
    for name, mutant in file.MUTANTS.items()
}
