"""Planted mistakes, each with the tests that must notice it.

``SRJIT_MUTANT=name python -m pytest -p mutants.plugin tests/numerics`` runs tests on one of them by
hand, with ``tests`` on PYTHONPATH.
"""
