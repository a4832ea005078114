"""Planted mistakes in what becomes of programs."""

from __future__ import annotations

from mutants.mutant import Mutant

BITS = "srjit.numerics.random_bits"
PROGRAMS = "jaxprs/test_noise_of_programs.py::"
RESIDUALS = "planning/test_residuals.py::"
COEFFICIENTS = "planning/test_coefficients.py::"
WRITTEN = "planning/test_write_backs.py::"
VERIFIED = "diagnostics/test_verify.py::"
ONCE = (
    "passes/emit/test_lowering.py::"
    "test_equal_functions_are_lowered_once_for_all_modules_and_again_where_jax_is_told_otherwise"
)
EXPERTS = "products/test_experts.py::"

MUTANTS = {
    "coefficients of all layers have the same noise": Mutant(
        module="srjit.jaxprs.evaluator",
        old="key = mix(self._key(()), _COEFFICIENTS + c.number)",
        new="key = mix(self.root or (0, 0), _COEFFICIENTS + c.number)",
        killed_by=(COEFFICIENTS + "test_every_layer_step_and_example_has_noise_of_its_own",),
    ),
    "coefficients are rounded to nearest": Mutant(
        module="srjit.jaxprs.coefficients",
        old="encode(exact, c.spec, of_all_shards(key, exact), rng=rng)",
        new="encode(exact, c.spec, None, rng=rng)",
        killed_by=(COEFFICIENTS + "test_gradients_are_right_on_average[int8]",),
    ),
    "what is kept anyway is kept as codes too": Mutant(
        module="srjit.planning.coefficients",
        old="freed = {t: n for t, n in c.sources.items() if t not in needed}",
        new="freed = dict(c.sources)",
        killed_by=(COEFFICIENTS + "test_a_value_that_the_program_returns_is_kept_once",),
    ),
    "one key for both operands": Mutant(
        module="srjit.jaxprs.evaluator",
        old="return mix(mix(self._key(draw.flips), draw.number), draw.slot)",
        new="return mix(mix(self._key(draw.flips), draw.number), 0)",
        killed_by=(PROGRAMS + "test_both_operands_of_a_product_have_noise_of_their_own",),
    ),
    "one key for dgrad and wgrad": Mutant(
        module="srjit.jaxprs.site",
        old="noise = of_typed_shards(mix(key, slot), x)",
        new="noise = of_typed_shards(mix(key, 0), x)",
        killed_by=(
            PROGRAMS + "test_a_cotangent_that_is_quantized_in_two_orientations_has_two_draws",
        ),
    ),
    "one key for all sites": Mutant(
        module="srjit.jaxprs.evaluator",
        old="return mix(mix(self._key(draw.flips), draw.number), draw.slot)",
        new="return mix(mix(self._key(draw.flips), 0), draw.slot)",
        killed_by=(PROGRAMS + "test_equal_values_are_rounded_with_different_noise[unrolled]",),
    ),
    "a trip count that is not folded in": Mutant(
        module="srjit.jaxprs.evaluator",
        old="key = mix(key, trip.counted(bool(flip)))",
        new="key = mix(key, 0)",
        killed_by=(
            PROGRAMS + "test_equal_values_are_rounded_with_different_noise[scanned]",
            PROGRAMS + "test_equal_values_are_rounded_with_different_noise[counted]",
            PROGRAMS + "test_equal_values_are_rounded_with_different_noise[nested]",
        ),
    ),
    "codes of weights are handed from loop to loop": Mutant(
        module="srjit.planning.residuals",
        old="if use.spec is None or not use.is_late or use.value in self._kept:",
        new="if True:",
        killed_by=(
            RESIDUALS + "test_loops_carry_no_more_than_the_policy_keeps[nothing-int8-jaxpr]",
            RESIDUALS
            + "test_no_compiler_takes_codes_that_are_made_again_for_the_first_ones[jaxpr]",
        ),
    ),
    "codes are kept beside floats that something else reads": Mutant(
        module="srjit.planning.residuals",
        old="if whole(value) not in held",
        new="if True",
        killed_by=(
            RESIDUALS + "test_loops_carry_no_more_than_the_policy_keeps[nothing-int8-jaxpr]",
        ),
    ),
    "codes that are made again have noise of their own": Mutant(
        module="srjit.planning.planner",
        old="draw = draws.draw(o, c.noise, side, shared)",
        new="draw = draws.draw(o, c.noise, side, (shared, residuals.are_made_again(use)))",
        killed_by=(RESIDUALS + "test_what_is_made_again_has_the_bits_that_it_had[scanned]",),
    ),
    "examples whose codes are made again have one scale": Mutant(
        module="srjit.jaxprs.site",
        old="examples = site.examples[other] if again else 0",
        new="examples = 0",
        killed_by=(
            RESIDUALS
            + "test_derivatives_from_outside_make_the_bits_again_that_there_were"
            + "[gradient of examples]",
        ),
    ),
    "write-backs are rounded to nearest": Mutant(
        module="srjit.jaxprs.write_back",
        old="return jnp.where(jnp.isinf(nearest), nearest, round_with(key, x, storage, rng))",
        new="return nearest",
        killed_by=(
            WRITTEN + "test_small_updates_accumulate_that_nearest_rounding_loses[1.0-1000]",
            WRITTEN + "test_one_write_back_goes_up_as_often_as_its_fraction_says[bfloat16]",
            VERIFIED + "test_write_backs_moments_and_casts_are_verified",
        ),
    ),
    "a parameter is added to before it is widened": Mutant(
        module="srjit.jaxprs.write_back",
        old="lax.convert_element_type(v, working_dtype(jnp.result_type(v))) for v in values",
        new="v for v in values",
        killed_by=(WRITTEN + "test_a_step_moves_parameters_by_its_update_on_average[decayed]",),
    ),
    "what leads to a write-back is rounded": Mutant(
        module="srjit.jaxprs.evaluator",
        old="if path in found.widened:",
        new="if False:",
        killed_by=(WRITTEN + "test_nothing_is_rounded_between_a_parameter_and_its_write_back",),
    ),
    "one key for all write-backs": Mutant(
        module="srjit.jaxprs.evaluator",
        old="key = mix(self._key(()), _WRITE_BACKS + write.number)",
        new="key = mix(self._key(()), _WRITE_BACKS)",
        killed_by=(
            WRITTEN + "test_write_backs_share_no_noise_with_each_other_or_between_steps",
            VERIFIED + "test_write_backs_moments_and_casts_are_verified",
        ),
    ),
    "layers that a loop writes share noise": Mutant(
        module="srjit.jaxprs.evaluator",
        old="key = mix(self._key(()), _WRITE_BACKS + write.number)",
        new="key = mix(self.root, _WRITE_BACKS + write.number)",
        killed_by=(WRITTEN + "test_every_layer_and_every_step_of_a_loop_has_noise_of_its_own",),
    ),
    "shards of a parameter share noise": Mutant(
        module="srjit.jaxprs.evaluator",
        old="key = of_shards(key, varies)",
        new="key = of_shards(key, ())",
        killed_by=(
            "planning/test_write_backs_on_devices.py::"
            "test_shards_of_a_parameter_do_not_share_noise[True]",
        ),
    ),
    "functions of one name are one, whatever their key": Mutant(
        module="srjit.passes.emit.lowering",
        old="    key: Hashable\n    fun:",
        new="    key: Hashable = dataclasses.field(compare=False)\n    fun:",
        killed_by=(ONCE,),
    ),
    "no function is another's": Mutant(
        module="srjit.passes.emit.lowering",
        old="@dataclasses.dataclass(frozen=True)\nclass _Function:",
        new="@dataclasses.dataclass(frozen=True, eq=False)\nclass _Function:",
        killed_by=(ONCE,),
    ),
    "functions are lowered once, whatever JAX is told": Mutant(
        module="srjit._compat",
        old="@_util.cache(max_size=1024)  #",
        new="@__import__('functools').lru_cache(1024)  #",
        killed_by=(ONCE,),
    ),
    "rows of other groups are in a group's result": Mutant(
        module="srjit.targets.tpu.group_kernels",
        old="pl.when(~is_inside & has_rows)(add_some)",
        new="pl.when(~is_inside & has_rows)(add)",
        killed_by=(
            "targets/test_tpu_groups.py::test_kernels_give_the_bits_of_ragged_dot[tiles0-TN-int8]",
        ),
    ),
    "what is computed again is read for its amax": Mutant(
        module="srjit.jaxprs.evaluator",
        old="if kept in self.codes:",
        new="if False:",
        killed_by=(
            "planning/test_sharing.py::test_the_amax_of_what_is_computed_again_is_kept[_deep-h0]",
        ),
    ),
    "all trips may draw from one key, unsaid": Mutant(
        module=BITS,
        old="if key is not None and _compat.loop_around(key):",
        new="if False:",
        killed_by=("numerics/test_noise_of_trips.py::test_every_kind_of_loop_is_seen[True-map]",),
    ),
    "examples share scales": Mutant(
        module="srjit.planning.examples",
        old="if self.counts and isinstance(c.product, DotProduct):",
        new="if False:",
        killed_by=(
            "api/test_per_example.py::test_no_example_changes_the_bits_of_another[one layer-nvfp4]",
        ),
    ),
    "a history has its loop's last trip": Mutant(
        module="srjit.jaxprs.rewrite",
        old="k: v if k in sliced else jnp.max(v, axis=0, initial=UNSEEN)",
        new="k: v if k in sliced else v[-1]",
        killed_by=("api/test_delayed_loops.py::test_a_history_has_the_largest_of_all_trips[map]",),
    ),
    "verify adds up no parts of tensors": Mutant(
        module="srjit.diagnostics.verify.judgement",
        old="yield from residuals.sums(bits)",
        new="yield from (t for t in residuals.sums(bits) if t.what == 'twins')",
        killed_by=(
            "diagnostics/test_verify_function.py::"
            "test_noise_that_comes_again_far_away_is_found[a fifth of a row]",
        ),
    ),
    "what is left alone is not asked for": Mutant(
        module="srjit.planning.decision",
        old="asked=rule is not None,",
        new="asked=False,",
        killed_by=(
            "planning/test_left_alone.py::"
            "test_it_is_a_row_a_warning_and_an_error_under_strict_through_both_doors[high-level]",
        ),
    ),
    "little that is quantized is no shortfall": Mutant(
        module="srjit.planning.coverage",
        old="if not total or lost.total() <= done or 10 * lost.total() < total:",
        new="if True:",
        killed_by=("planning/test_shortfall.py::test_a_pipeline_says_it_too",),
    ),
    "a file's digest is any": Mutant(
        module="srjit.api.program_file",
        old='if digest != _digest({"format": of, **fields}, program):',
        new="if digest is None:",
        killed_by=("api/test_program_files.py::test_every_bit_of_the_program_counts",),
    ),
    "weights of another recipe have the same mark": Mutant(
        module="srjit.api.freeze",
        old="if marks != wanted:",
        new="if False:",
        killed_by=(
            "api/test_freeze_bad_input.py::"
            "test_weights_that_are_packed_otherwise_are_refused[another recipe]",
        ),
    ),
    "both scales are multiplied first": Mutant(
        module="srjit.products.quantized",
        old="factors = [(rest * power) * (other_rest * other_power), power * other_power]",
        new="factors = [(rest * power * power) * (other_rest * other_power * other_power)]",
        killed_by=(
            "products/test_scales.py::"
            "test_products_scale_with_their_operands_as_long_as_they_are_normal[fp8-both]",
        ),
    ),
    "experts share one scale": Mutant(
        module="srjit.planning.decision",
        old="lhs = lhs and within_groups(lhs, product, 0, shapes[0])",
        new="",
        killed_by=(
            EXPERTS + "test_every_expert_is_quantized_as_if_it_were_alone[int8]",
            EXPERTS + "test_no_expert_is_lost_in_int8[spread1]",
        ),
    ),
    "blocks of rows reach over experts": Mutant(
        module="srjit.numerics.groups",
        old="block_ends = jnp.cumsum(-(-sizes // block), axis=axis)",
        new="block_ends = jnp.cumsum(ends // block - (ends - sizes) // block, axis=axis)",
        killed_by=(EXPERTS + "test_every_expert_is_quantized_as_if_it_were_alone[mxfp8]",),
    ),
    "experts without rows are seen": Mutant(
        module="srjit.products.quantized",
        old="present = groups.sizes() > 0",
        new="present = groups.sizes() >= 0",
        killed_by=(EXPERTS + "test_every_expert_has_a_history",),
    ),
    "every part of an asynchronous collective counts": Mutant(
        module="srjit.aot.compiled_program",
        old="elif i is not e.instruction and identity in started:",
        new="elif False:",
        killed_by=(
            "aot/test_compiled_program.py::test_an_asynchronous_collective_is_counted_once_and_"
            "a_fused_reduce_scatter_is_one",
        ),
    ),
    "both branches of a kernel count": Mutant(
        module="srjit.aot.kernel_operations",
        old="times * ((taken != 0) == is_taken)",
        new="times",
        killed_by=(
            "aot/test_compiled_program.py::"
            "test_a_kernel_tells_what_it_multiplies_where_its_mask_lets_it",
        ),
    ),
}
