"""The name of a rounding of a program, wherever figures of it are told."""

from __future__ import annotations

import dataclasses

from srjit.numerics.quantization import Quantization
from srjit.planning.planned_site import Operand
from srjit.planning.write_backs import Write


@dataclasses.dataclass(frozen=True, kw_only=True)
class Label:
    """Something that a program rounds.

    Attributes:
      site: number of the site that reads it first; of what is written, among all that is.
      path, role: of that site. Of a write-back, what is written and ``update``; of a cast of a
        gradient, where it stands and ``cast``.
      operand: ``lhs`` or ``rhs``; empty of what is written.
      kind: ``activation``, ``weight``, ``gradient``, ``parameter`` or ``moment``.
      where: which execution: iterations of the loops around it, outermost first, and shards.
      format: what it is rounded to.
    """

    site: int
    path: str
    role: str
    operand: str
    kind: str
    where: tuple[int, ...] = ()
    format: str

    @classmethod
    def of(cls, operand: Operand, spec: Quantization, where: tuple[int, ...] = ()) -> Label:
        """The label of a quantized operand."""
        site = operand.row.site
        return Label(
            site=site.number,
            path=site.path or site.location,
            role=site.role,
            operand=operand.name,
            kind=operand.kind,
            where=where,
            format=spec.format,
        )

    @classmethod
    def of_write(cls, write: Write) -> Label:
        """The label of a write-back, or of a cast of a gradient."""
        return Label(
            site=write.number,
            path=write.path,
            role="cast" if write.kind == "gradient" else "update",
            operand="",
            kind=write.kind,
            format=write.dtype,
        )

    @property
    def name(self) -> str:
        """``site 3 wgrad rhs`` or ``update 0 params['w']``, and the execution."""
        trip = f" trip {','.join(map(str, self.where))}" if self.where else ""
        if self.operand:
            return f"site {self.site} {self.role} {self.operand}{trip}"
        return f"{self.role} {self.site} {self.path}{trip}"
