"""Mistakes in finding the roles of products, and what is a parameter."""

from __future__ import annotations

from mutants.mutant import Mutant

ANYWHERE = (
    "planning/test_parameters.py::"
    "test_coverage_does_not_depend_on_where_parameters_stand[bare arrays-jaxpr]"
)
STRUCTURE = "planning/test_roles_from_structure.py::"
ALIKE = "planning/test_roles_by_structure_alone.py::test_roles_are_those_that_names_tell"
HIGHER = (
    "planning/test_roles_of_higher_derivatives.py::"
    "test_higher_derivatives_have_no_role_of_first_ones"
)

MUTANTS = {
    "a gradient is of no earlier product": Mutant(
        module="srjit.planning.dependences",
        old="found = other.products & readers or (readers if named else 0)",
        new="found = 0",
        killed_by=(
            "passes/test_roles_without_names.py::test_roles_are_the_same_without_locations"
            "[a Hessian by two backward passes]",
        ),
    ),
    "a cotangent tells no product": Mutant(
        module="srjit.planning.matching",
        old="            not is_other_side,",
        new="            False,",
        killed_by=(HIGHER + "[forces between messages]",),
    ),
    "a direction of one hidden layer is data": Mutant(
        module="srjit.planning.doubts",
        old="if len(along) < len(alike):",
        new="if False:",
        killed_by=(HIGHER + "[a Laplacian]",),
    ),
    "a layer has an activation or none": Mutant(
        module="srjit.planning.phases",
        old="if more := self.like_tangents(matching):",
        new="if more := {}:",
        killed_by=(HIGHER + "[a score of one hidden layer]",),
    ),
    "an update is a forward pass": Mutant(
        module="srjit.planning.phases",
        old="if not is_second and any(",
        new="if False and any(",
        killed_by=(ALIKE + "[an update of low rank]",),
    ),
    "a gradient is told by an index": Mutant(
        module="srjit.planning.phases",
        old="return by_index and len(seen) < MOST",
        new="return False",
        killed_by=(
            "planning/test_roles_by_structure_alone.py::"
            "test_products_in_the_place_of_gradients_are_none[a codebook]",
        ),
    ),
    "what is blocked stays so": Mutant(
        module="srjit.planning.phases",
        old="        if not ends:\n",
        new="        if True:\n",
        killed_by=(
            "planning/test_roles_by_structure_alone.py::"
            "test_products_in_the_place_of_gradients_are_none[spectral norms]",
        ),
    ),
    "a cotangent that others read is no gradient": Mutant(
        module="srjit.planning.doubts",
        old="if self.reads_cotangent(o, t in later)",
        new="if False",
        killed_by=(ALIKE + "[statistics of a gradient]",),
    ),
    "what is dead code has no gradient": Mutant(
        module="srjit.planning.doubts",
        old="self.of_unread() + self.of_dead_code()",
        new="self.of_unread()",
        killed_by=(HIGHER + "[path lengths of two hidden layers]",),
    ),
    "a given cotangent is an input": Mutant(
        module="srjit.planning.doubts",
        old="q.out.token in seeds or self.matching.level(q)",
        new="self.matching.level(q)",
        killed_by=(HIGHER + "[path lengths]",),
    ),
    "a call again is the same call": Mutant(
        module="srjit.planning.matching",
        old="taken is not None and self._calls[id(p), side] < 0",
        new="taken is not None",
        killed_by=(
            "planning/test_roles_by_structure_alone.py::test_a_call_again_is_differentiated_again",
        ),
    ),
    "what makes the input of a layer may be a gradient": Mutant(
        module="srjit.planning.doubts",
        old="self.order[id(o)] < first and self.is_residual(o)",
        new="False",
        killed_by=(ALIKE + "[experts, sent rows by a matrix]",),
    ),
    "a declared residual is a weight": Mutant(
        module="srjit.planning.matching",
        old="self.orphans.clear()",
        new="pass",
        killed_by=(
            "planning/test_roles_of_higher_derivatives.py::"
            "test_a_backward_pass_alone_is_unknown_whatever_its_residuals_are[weights]",
        ),
    ),
    "blocks are wholes": Mutant(
        module="srjit.planning.doubts",
        old=" + self.of_parts()",
        new="",
        killed_by=(
            STRUCTURE
            + "test_a_backward_pass_in_other_blocks_than_the_forward_one_is_no_forward_pass",
        ),
    ),
    "what others read as a cotangent may be a residual": Mutant(
        module="srjit.planning.roles",
        old="if sum(read) == 1:",
        new="if False:",
        killed_by=(STRUCTURE + "test_attention_in_blocks_has_all_roles_though_it_weighs_again",),
    ),
    "what is read forms all gradients": Mutant(
        module="srjit.planning.doubts",
        old="found += self.of_unread() + self.of_dead_code()",
        new="found += self.of_dead_code()",
        killed_by=(HIGHER + "[one linear layer's Hessian, times a vector]",),
    ),
    "an input is no cotangent": Mutant(
        module="srjit.planning.doubts",
        old="self.of_given([*found, *self.second])",
        new="[]",
        killed_by=(HIGHER + "[a deep tangent kernel's product]",),
    ),
    "a product of tangents is one": Mutant(
        module="srjit.planning.tangents",
        old="is_one = len(inside) == 1 or not (is_product or made.name in FACTORS)",
        new="is_one = True",
        killed_by=(ALIKE + "[a gate that is data]",),
    ),
    "a bias makes a weight of moved data": Mutant(
        module="srjit.planning.updates",
        old="and not self._graph.is_spread(value.token)",
        new="",
        killed_by=(
            "planning/test_roles_by_structure_alone.py::"
            "test_a_bias_or_a_place_added_to_moved_data_makes_no_weight_of_it",
        ),
    ),
    "only arguments that come first are parameters": Mutant(
        module="srjit.planning.parameters",
        old="if trained := self._updated():",
        new="return _usual(self)\n        if trained := self._updated():",
        killed_by=(ANYWHERE,),
    ),
}
