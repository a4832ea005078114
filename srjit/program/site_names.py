"""Name scopes that tell the site that operations are of, for reading what a compiler made of it."""

from __future__ import annotations

import contextlib
import contextvars
import re
from collections.abc import Generator

_naming = contextvars.ContextVar("naming_sites", default=False)
_SITE = re.compile(r"srjit\.site=(\d+)")


@contextlib.contextmanager
def naming_sites() -> Generator[None]:
    """A context in which rewritten operations get a scope that names their site.

    Compilers keep such names. Codes that sites share are of the first one.
    """
    token = _naming.set(True)
    try:
        yield
    finally:
        _naming.reset(token)


def scope_of(site: int) -> str | None:
    """The scope of the site with that number; None unless sites are named."""
    return f"srjit.site={site}" if _naming.get() else None


def site_of(op_name: str) -> int | None:
    """The number of the site that a name stack tells, the innermost one."""
    found = _SITE.findall(op_name)
    return int(found[-1]) if found else None
