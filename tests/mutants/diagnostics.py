"""Planted mistakes in what verifies and watches."""

from __future__ import annotations

from mutants.mutant import Mutant

VISIBILITY = "numerics/test_visibility.py::"
VERIFIED = "diagnostics/test_verify.py::"
STATISTICS = "diagnostics/test_statistics.py::"
WATCHED = "diagnostics/test_watch.py::"

MUTANTS = {
    # Reports
    "layers that are kept stand with others": Mutant(
        module="srjit.report.report",
        old="return (plan.reason, *(c.cell(plan) for c in _TERMINAL if c.name not in named))",
        new="return (plan.site.role, label_of(plan.site.op))",
        killed_by=("report/test_repeated.py::test_a_deep_model_fits_one_screen",),
    ),
    # What verifies
    "every defect of a recipe that clips is by design": Mutant(
        module="srjit.diagnostics.verify.certificate",
        old="all(CLIPS in said for said in self.wrong)",
        new="any(CLIPS in said for said in self.wrong)",
        killed_by=(VERIFIED + "test_clipping_at_the_block_maximum_is_found",),
    ),
    "limits are half of Bernstein's": Mutant(
        module="srjit.diagnostics.verify.statistics",
        old="third + math.sqrt(third**2 + 6 * self.variance * third)",
        new="(third + math.sqrt(third**2 + 6 * self.variance * third)) / 2",
        killed_by=(
            STATISTICS + "test_the_threshold_solves_bernsteins_inequality",
            STATISTICS
            + "test_a_correct_program_is_beyond_its_limit_as_rarely_as_said[evenly spread-0.05]",
        ),
    ),
    "limits are twice Bernstein's": Mutant(
        module="srjit.diagnostics.verify.statistics",
        old="third + math.sqrt(third**2 + 6 * self.variance * third)",
        new="2 * (third + math.sqrt(third**2 + 6 * self.variance * third))",
        killed_by=(STATISTICS + "test_the_threshold_solves_bernsteins_inequality",),
    ),
    "clipping is no bias": Mutant(
        module="srjit.diagnostics.verify.residuals",
        old="clipped = y > element.max * (1 + ARITHMETIC)",
        new="clipped = np.zeros(y.shape, bool)",
        killed_by=(VERIFIED + "test_clipping_at_the_block_maximum_is_found",),
    ),
    "neighbours are not compared": Mutant(
        module="srjit.diagnostics.verify.judgement",
        old="yield from residuals.pairs()",
        new='yield from (t for t in residuals.pairs() if t.what != "neighbours")',
        killed_by=(VERIFIED + "test_noise_that_a_row_shares_is_found",),
    ),
    "keys are not compared": Mutant(
        module="srjit.diagnostics.verify.judgement",
        old="if any(f.keys[step] == other.keys.get(step) for step in f.keys):",
        new="if False:",
        killed_by=(
            VERIFIED + "test_one_key_for_two_sites_is_found",
            VERIFIED + "test_write_backs_that_share_a_key_or_ignore_it_are_found",
        ),
    ),
    "nothing has to change": Mutant(
        module="srjit.diagnostics.verify.residuals",
        old="return bool(np.max(np.ptp(self.head, axis=0)) < 0.5)",
        new="return False",
        killed_by=(
            VERIFIED + "test_a_float_format_that_ignores_the_noise_is_found[fp8]",
            VERIFIED + "test_write_backs_that_share_a_key_or_ignore_it_are_found",
        ),
    ),
    "write-backs are not looked at": Mutant(
        module="srjit.jaxprs.evaluator",
        old="if self.shown.observer is not None:\n            seen",
        new="if False:\n            seen",
        killed_by=(VERIFIED + "test_write_backs_moments_and_casts_are_verified",),
    ),
    # What watches
    "every small value is lost": Mutant(
        module="srjit.jaxprs.figures",
        old="(size <= sample.scale * (sample.element.smallest / 2))",
        new="(size <= sample.scale * sample.element.smallest)",
        killed_by=(WATCHED + "test_figures_are_those_of_the_operand",),
    ),
    "a sample has a scale of its own": Mutant(
        module="srjit.jaxprs.figures",
        old="known = self.amax  # of the tensor, not of the sample",
        new="pass",
        killed_by=(WATCHED + "test_a_sample_is_quantized_with_the_scale_of_its_tensor",),
    ),
    "the largest value is beyond itself": Mutant(
        module="srjit.jaxprs.figures",
        old="return jnp.mean(size > sample.scale * sample.element.max, dtype=jnp.float32)",
        new="return jnp.mean(size >= sample.scale * sample.element.max, dtype=jnp.float32)",
        killed_by=(WATCHED + "test_figures_are_those_of_the_operand",),
    ),
    "what is not finite saturates under a scale that is given": Mutant(
        module="srjit.numerics.scale_layouts",
        old="return keep_visible(how.view.split(x), codes), scales",
        new="return codes, scales",
        killed_by=(VISIBILITY + "test_static_scales_do_not_hide_what_is_not_finite[fp8_e4m3-inf]",),
    ),
    "what does not pay is not pinned": Mutant(
        module="srjit.planning.profit",
        old="pays=False,",
        new="pays=True,",
        killed_by=("report/test_pinned.py::test_gradients_outside_are_pinned_too",),
    ),
    "codes that several sites read are measured at one alone": Mutant(
        module="srjit.api.calibrate",
        old="measured.get(o.shared.first, ())",
        new="[r.amax for r in records if (r.site, r.operand) == place]",
        killed_by=("api/test_calibrate.py::test_a_margin_is_a_factor",),
    ),
}
