"""``srjit-annotate-matmuls``: what each matrix multiplication computes, written onto it."""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from typing import TYPE_CHECKING, Any, ClassVar

from srjit._mlir import ir
from srjit.passes.driver.registry import Pass, PassError, register
from srjit.passes.mlir import annotation, attributes
from srjit.program.stablehlo import operations

if TYPE_CHECKING:
    from srjit.planning.provenance import Provenance
    from srjit.program.stablehlo.program import Program


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class AnnotateMatmuls(Pass):
    """Writes site number, path, role and operand kinds onto every matrix multiplication.

    Roles are inferred as the decorator infers them, from locations (``jvp``, ``transpose``) and
    from provenance: which operand a forward multiplication read too, and what came from parameters.
    Where no location names a derivative, the backward pass is found by structure. What cannot be
    inferred is ``unknown``. An operation in a function that is called twice gets two entries, in
    execution order.

    Attributes:
      roles: what sites compute where srjit does not find it, or not that: a glob over paths, or `#`
        and a number, then `=`, and `fprop`, or `dgrad` or `wgrad` with the operand that is the
        gradient (`#7=wgrad:rhs`). The first about a site counts; one about no site is an error.
      params: which arguments of @main are parameters: positions (`3`), ranges (`0-5`), patterns of
        the names that their locations carry (`params*`), or `none`. Without it, they are found as
        the decorator finds them (docs/parameters.md), where arguments whose names begin alike
        (`params['w']`) are one.
      constants: beside `params`, and in the same words: which are arrays that the program captures,
        constants beside its parameters.

    Before ==> after:
        %0 = stablehlo.dot_general %arg1, %arg0, contracting_dims = [1] x [0]
        ==>
        %0 = stablehlo.dot_general %arg1, %arg0, contracting_dims = [1] x [0]
          {srjit.sites = [{number = 0, role = "fprop", lhs = "activation", rhs = "weight", ...}]}
    """

    name: ClassVar[str] = "srjit-annotate-matmuls"
    params: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    roles: tuple[str, ...] = ()

    def run(self, module: ir.Operation) -> dict[str, int]:
        """Annotates."""
        from srjit.planning.roles import classify
        from srjit.planning.stated import with_stated
        from srjit.recipes.rule import RecipeError, computed

        if annotation.REPORT in module.attributes:
            raise PassError(None, "the module is quantized already: annotate it before that")
        statements: list[tuple[str, str]] = []
        for text in self.roles:
            site, _, role = text.rpartition("=")
            try:
                computed(role)
            except RecipeError as error:
                raise PassError(None, f"roles={text}: {error}") from None
            statements.append((site, role))
        if annotation.PARAMETERS in module.attributes:
            del module.attributes[annotation.PARAMETERS]
        _, provenance, taken, _ = provenance_of(module, self.params, self.constants)
        found, used = with_stated(classify(provenance), statements)
        for i, (site, _) in enumerate(statements):
            if i not in used:
                raise PassError(None, f"roles={site}={self.roles[i].rpartition('=')[2]} is no site")
        annotation.annotate(found)
        module.attributes[annotation.PARAMETERS] = attributes.encode(taken)
        unknown = sum(c.site.role == "unknown" for c in found)
        return {"sites found": len(found), "sites of unknown role": unknown}


def provenance_of(
    module: Any, params: tuple[str, ...] = (), constants: tuple[str, ...] = ()
) -> tuple[Program, Provenance, annotation.Taken, tuple[str, ...]]:
    """The program that a module is, and where the operands of its multiplications come from.

    Then which of its arguments are parameters: those that ``params`` names, or an annotation; or
    those that are found. The last are notes for a report.

    Raises:
      PassError: it is not one program, or a parameter does not exist.
    """
    from srjit.planning.parameters import labels_of
    from srjit.planning.phases import traced
    from srjit.planning.provenance import is_tensor
    from srjit.program.stablehlo.program import ModuleSourceInfo
    from srjit.program.stablehlo.reader import Raiser
    from srjit.program.values import CONSTANT, COUNTER

    try:
        main = operations.main_of(module)
        raiser = Raiser(module)
        program = raiser.main(module)
    except operations.MalformedProgram as error:
        raise PassError(error.op, str(error)) from None
    names = [raiser.locations.name_of(a.location) for a in main.regions[0].blocks[0].arguments]
    source = ModuleSourceInfo(raiser.locations)
    if params:
        entry = operations.entry_of(module)
        chosen = [
            tuple(sorted(_chosen(option, texts, names, main, entry)))
            for option, texts in (("params", params), ("constants", constants))
        ]
        taken = annotation.Taken(inputs=chosen[0], constants=chosen[1])
    elif annotation.PARAMETERS in module.attributes:
        taken = annotation.taken_of(module)
    else:
        taken = _found(program, names, main, source)
    labels = labels_of(program, taken.inputs)
    for i in taken.constants:
        labels[i] = CONSTANT if is_tensor(program.invars[i].aval) else COUNTER
    return program, traced(program, labels, source), taken, tuple(raiser.notes)


def _found(program: Program, names: list[str], main: Any, source: Any) -> annotation.Taken:
    """Finds the parameters of a module. Inputs whose names begin alike are one argument."""
    from srjit.planning import parameters
    from srjit.program.stablehlo.program import multiplies

    if not multiplies(program):
        return annotation.Taken()
    # The tokens of ordered effects come before a program's own arguments.
    of_jax = operations.of_jax(main)
    own = [
        i
        for i, a in enumerate(main.regions[0].blocks[0].arguments)
        if isinstance(a.type, ir.RankedTensorType) and i not in of_jax
    ]
    roots = [re.split(r"[\[.]", names[i])[0] for i in own]
    found = parameters.find(
        program,
        [
            dataclasses.replace(a, inputs=tuple(own[i] for i in a.inputs))
            for a in parameters.arguments_of(
                [root or f"argument {i}" for i, root in zip(own, roots, strict=True)],
                [names[i] != root for i, root in zip(own, roots, strict=True)],
            )
        ],
        source,
    )
    return annotation.Taken(inputs=tuple(sorted(found.inputs)), note=found.note)


def _chosen(
    option: str, texts: tuple[str, ...], names: list[str], main: Any, entry: str
) -> set[int]:
    chosen: set[int] = set()
    for text in texts if texts != ("none",) else ():
        interval = re.fullmatch(r"(\d+)(?:-(\d+))?", text)
        if interval:
            first, last = int(interval[1]), int(interval[2] or interval[1])
            found = set(range(first, last + 1)) if last < len(names) else set[int]()
            what = f"@{entry} has {len(names)} arguments"
        else:
            pattern = text.replace("[", "[[]")  # names of arguments are full of brackets
            found = {i for i, name in enumerate(names) if fnmatch.fnmatchcase(name, pattern)}
            called = ", ".join(repr(n) for n in names[:8]) or "nothing"
            what = f"@{entry}'s arguments are called {called}"
        if not found:
            raise PassError(main, f"{option}={text} is no argument: {what}")
        chosen |= found
    return chosen
