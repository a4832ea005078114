"""Roles that somebody states: by a rule of a recipe, or by an option of the pass."""

from __future__ import annotations

import pytest

from small_programs import PARAMS, X, Y, explain, loss
from srjit import passes, recipes
from srjit._mlir import ir
from srjit.passes.mlir import annotation
from srjit.program.stablehlo.operations import inside

INT8 = recipes.get("int8")
MODULE = """
func.func @main(%w: tensor<4x8xf32>, %x: tensor<2x4xf32>) -> tensor<2x8xf32> {
  %h = stablehlo.dot %x, %w : (tensor<2x4xf32>, tensor<4x8xf32>) -> tensor<2x8xf32>
  return %h : tensor<2x8xf32>
}
"""


def _with(*stated: recipes.Rule) -> recipes.Recipe:
    return recipes.Recipe(name="mine", rules=(*stated, *INT8.rules))


@pytest.mark.parametrize("mode", ["train", "inference"])
def test_a_rule_states_a_role_by_number(mode: str):
    recipe = _with(
        recipes.Rule(path="#1", computes="wgrad:rhs"), recipes.Rule(path="#1", computes="fprop")
    )
    first, second = explain(loss, PARAMS, X, Y, recipe=recipe, mode=mode).sites
    assert (first.role, first.why) == ("fprop", "forward")
    assert (second.role, second.why) == ("wgrad", "stated")
    assert (second.lhs_kind, second.rhs_kind) == ("activation", "gradient")
    rounding = "stochastic" if mode == "train" else "nearest"
    assert (second.lhs.rounding, second.rhs.rounding) == ("nearest", rounding)


def test_a_rule_about_no_site_is_said_and_text_keeps_rules():
    recipe = _with(recipes.Rule(path="nowhere/*", computes="dgrad:lhs"))
    assert recipes.Recipe.from_toml(recipe.to_toml()) == recipe
    notes = explain(loss, PARAMS, X, Y, recipe=recipe).notes
    assert any("nowhere/*" in note and "matched no site" in note for note in notes)


@pytest.mark.parametrize("text", ["wgrad", "fprop:lhs", "dgrad:both", "x", "dgrad:"])
def test_what_states_no_role_is_refused(text: str):
    with pytest.raises(recipes.RecipeError, match="dgrad:lhs"):
        recipes.Rule(computes=text)


def test_a_rule_that_states_a_role_says_nothing_else():
    with pytest.raises(recipes.RecipeError, match="nothing else"):
        recipes.Rule(path="#1", computes="fprop", op="dot*")


def _annotated(roles: str) -> annotation.Annotation:
    module = _parsed()
    passes.parse(f"srjit-annotate-matmuls{{params=0 roles={roles}}}").run(module)
    (op,) = [op for op in inside(module.operation) if op.name == "stablehlo.dot"]
    (entry,) = annotation.read(op, annotation.Annotation)
    return entry


def _parsed() -> ir.Module:
    from passes import corpus

    return corpus.parsed(MODULE)


@pytest.mark.parametrize("site", ["#0", "*"])
def test_the_pass_states_roles(site: str):
    entry = _annotated(f"{site}=dgrad:lhs")
    assert (entry.role, entry.lhs, entry.rhs) == ("dgrad", "gradient", "weight")


@pytest.mark.parametrize(
    ("roles", "message"), [("#3=fprop", "#3=fprop is no site"), ("#0=grad", "states no role")]
)
def test_the_pass_refuses_what_says_nothing(roles: str, message: str):
    with pytest.raises(passes.PipelineError, match=message):
        _annotated(roles)
