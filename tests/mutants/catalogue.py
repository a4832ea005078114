"""The planted mistakes: what replaces what in the source, and which tests must fail then.

A new mutant is an entry of ``MUTANTS``. Its ``old`` text has to occur exactly once in the module,
and each of ``killed_by`` has to fail, and be part of ``make test``. ``test_mutants.py`` sees to the
former, ``run.py`` (``make mutants``) to the latter.
"""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mutant:
    """A mistake.

    Attributes:
      module: where it is planted.
      old: what the source says.
      new: what the mutant says.
      killed_by: tests under ``tests/``, with parameters, that must fail.
    """

    module: str
    old: str
    new: str
    killed_by: tuple[str, ...]


ROUNDING = "srjit.numerics.rounding"
SCALING = "srjit.numerics.scaling"
BITS = "srjit.numerics.random_bits"
LAYOUTS = "srjit.numerics.scale_layouts"

NEAREST = "numerics/test_nearest_rounding.py::"
STOCHASTIC = "numerics/test_stochastic_rounding.py::"
SCALES = "numerics/test_scales.py::"
EDEN = "numerics/test_eden_scales.py::"
NOISE = "numerics/test_noise.py::"
VISIBILITY = "numerics/test_visibility.py::"
AVERAGES = "numerics/test_averages.py::"
PROGRAMS = "jaxprs/test_noise_of_programs.py::"
SIGNS = "jaxprs/test_noise.py::test_products_draw_signs_of_their_own"
RECIPES = "recipes/test_recipes.py::"
WRITTEN = "planning/test_write_backs.py::"
VERIFIED = "diagnostics/test_verify.py::"
STATISTICS = "diagnostics/test_statistics.py::"
WATCHED = "diagnostics/test_watch.py::"
ANYWHERE = (
    "planning/test_parameters.py::"
    "test_coverage_does_not_depend_on_where_parameters_stand[bare arrays-jaxpr]"
)
PARTIAL = "modules/test_partial_sums.py::"

MUTANTS: dict[str, Mutant] = {
    # Rounding
    "noise is added, not compared": Mutant(
        module=ROUNDING,
        old="return down + (uniform(bits, t.dtype) < t - down).astype(t.dtype)",
        new="return jnp.floor(t + uniform(bits, t.dtype))",
        killed_by=(
            STOCHASTIC + "test_values_of_the_grid_never_move[float8_e4m3fn]",
            STOCHASTIC + "test_float32_in_every_cell_rounds_up_with_its_fraction[float8_e4m3fn]",
        ),
    ),
    "noise is compared with <=": Mutant(
        module=ROUNDING,
        old="(uniform(bits, t.dtype) < t - down)",
        new="(uniform(bits, t.dtype) <= t - down)",
        killed_by=(
            STOCHASTIC + "test_values_of_the_grid_never_move[float4_e2m1fn]",
            STOCHASTIC + "test_going_through_all_noise_values_counts_the_fraction[float4_e2m1fn]",
        ),
    ),
    "noise in bfloat16": Mutant(
        module=ROUNDING,
        old="return down + (uniform(bits, t.dtype) < t - down)",
        new="return down + (uniform(bits, jnp.dtype(jnp.bfloat16)) < t - down)",
        killed_by=(
            STOCHASTIC + "test_float32_in_every_cell_rounds_up_with_its_fraction[float8_e4m3fn]",
            STOCHASTIC + "test_going_through_all_noise_values_counts_the_fraction[float8_e5m2]",
        ),
    ),
    "integers' noise has 16 bits": Mutant(
        module=ROUNDING,
        old="return n + lax.bitcast_convert_type(bits >> 8,",
        new="return n + lax.bitcast_convert_type(bits >> 16 << 8,",
        killed_by=(
            STOCHASTIC + "test_going_through_all_noise_values_counts_the_fraction[int4]",
            STOCHASTIC + "test_every_16_bit_float_rounds_up_with_its_fraction[int8-bfloat16]",
        ),
    ),
    "integers are rounded toward zero before noise is added": Mutant(
        module=ROUNDING,
        old="n = lax.round(y * y.dtype.type(2.0**24), _TIES_TO_EVEN).astype(jnp.int32)",
        new="n = (y * y.dtype.type(2.0**24)).astype(jnp.int32)",
        killed_by=(STOCHASTIC + "test_float32_in_every_cell_rounds_up_with_its_fraction[int4]",),
    ),
    "the lower 24 bits of the noise": Mutant(
        module=ROUNDING,
        old="lax.convert_element_type((~bits >> 8)",
        new="lax.convert_element_type((~bits & 0xFFFFFF)",
        killed_by=(
            STOCHASTIC
            + "test_every_16_bit_float_rounds_up_with_its_fraction[float8_e4m3fn-bfloat16]",
        ),
    ),
    "subnormals have steps of their own": Mutant(
        module=ROUNDING,
        old="field = jnp.maximum(field, smallest)",
        new="field = jnp.maximum(field, unsigned(16 << mantissa))",
        killed_by=(
            STOCHASTIC + "test_float32_in_every_cell_rounds_up_with_its_fraction[float8_e5m2]",
        ),
    ),
    "subnormals are rounded to their nearest like normal numbers": Mutant(
        module=ROUNDING,
        old="y.dtype.type(2.0**element.min_exponent), subnormal, normal)",
        new="y.dtype.type(2.0**element.min_exponent), normal, normal)",
        killed_by=(
            NEAREST
            + "test_every_16_bit_float_is_rounded_to_the_nearest_value[float8_e4m3fn-float16]",
        ),
    ),
    "the largest element is clipped": Mutant(
        module=ROUNDING,
        old="    # Capped first: M is of the grid, so nothing is rounded beyond it, and Inf is in "
        "no product.\n    limit = y.dtype.type(element.max)",
        new="    limit = y.dtype.type(element.max * (1 - 2.0**-9))",
        killed_by=(
            STOCHASTIC + "test_values_of_the_grid_never_move[int8]",
            STOCHASTIC + "test_values_of_the_grid_never_move[float4_e2m1fn]",
        ),
    ),
    "halves are rounded away from zero": Mutant(
        module=ROUNDING,
        old="_TIES_TO_EVEN = lax.RoundingMethod.TO_NEAREST_EVEN",
        new="_TIES_TO_EVEN = lax.RoundingMethod.AWAY_FROM_ZERO",
        killed_by=(
            NEAREST
            + "test_ties_and_what_is_next_to_them_are_rounded_to_the_nearest_value[float8_e4m3fn]",
            NEAREST + "test_ties_and_what_is_next_to_them_are_rounded_to_the_nearest_value[int8]",
        ),
    ),
    "halves of bfloat16 are rounded up": Mutant(
        module=ROUNDING,
        old="added = odd + unsigned((1 << (drop - 1)) - 1)",
        new="added = unsigned(1 << (drop - 1))",
        killed_by=(
            NEAREST
            + "test_ties_and_what_is_next_to_them_are_rounded_to_the_nearest_value[bfloat16]",
            NEAREST + "test_subnormal_float32_are_rounded_to_subnormal_bfloat16",
        ),
    ),
    # Scales
    "a reciprocal scale": Mutant(
        module=SCALING,
        old="return x / jnp.where(jnp.isnan(x), x, x.dtype.type(constant))",
        new="return x * x.dtype.type(1 / constant)",
        killed_by=(
            SCALES + "test_float_scales_are_amax_over_the_largest_code[int8-gaussian-channel]",
            SCALES + "test_nvfp4_scales_are_exact_in_every_binade[standard-binades3]",
        ),
    ),
    "a division by a constant, which XLA makes a reciprocal": Mutant(
        module=SCALING,
        old="return x / jnp.where(jnp.isnan(x), x, x.dtype.type(constant))",
        new="return x / lax.optimization_barrier(jnp.full(x.shape, constant, x.dtype))",
        killed_by=(SCALES + "test_nvfp4_scales_are_exact_in_every_binade[standard-binades3]",),
    ),
    "nvfp4's factors in another order": Mutant(
        module=SCALING,
        old="target = block * (s * np.float32(1 / largest))",
        new="target = block * s * np.float32(1 / largest)",
        killed_by=(SCALES + "test_nvfp4_scales_are_exact_beside_ties",),
    ),
    "four over six takes the worse": Mutant(
        module=LAYOUTS,
        old="better = error_four < error_six",
        new="better = error_four > error_six",
        killed_by=(SCALES + "test_four_over_six_takes_the_better_of_two_scales[gaussian-block]",),
    ),
    "nvfp4's scale from the block alone": Mutant(
        module=SCALING,
        old="encode = jnp.minimum(per_unit / decode, limit)",
        new="encode = jnp.minimum(6.0 / b * per_unit / per_unit, limit)",
        killed_by=(SCALES + "test_nvfp4_is_the_published_algorithm[gaussian-standard-block]",),
    ),
    "subnormal quotients are rounded twice": Mutant(
        module=SCALING,
        old="return jnp.where(tiny & (approximation < 2.0**23), whole, approximation)",
        new="return jnp.where(tiny, jnp.round(approximation), approximation)",
        killed_by=(SCALES + "test_nvfp4_scales_are_exact_in_every_binade[standard-binades0]",),
    ),
    "subnormals lose their signs": Mutant(
        module=SCALING,
        old="return jnp.where(word < 0, -magnitude, magnitude)",
        new="return jnp.where(x < 0, -magnitude, magnitude)",
        killed_by=(
            SCALES + "test_nvfp4_is_the_published_algorithm[tiny magnitudes mixed-standard-block]",
        ),
    ),
    "nvfp4's scales are not rounded up": Mutant(
        module=SCALING,
        old="jnp.where(sf < jnp.minimum(target, _E4M3.max), next_up(sf), sf)",
        new="sf",
        killed_by=(
            AVERAGES + "test_scales_rounded_up_clip_nothing",
            SCALES + "test_nvfp4_is_the_published_algorithm[gaussian-up-block]",
        ),
    ),
    "power-of-two scales are rounded up": Mutant(
        module=SCALING,
        old="exponent = (word >> 23) - element.max_exponent",
        new="exponent = (word >> 23) - element.max_exponent + 1",
        killed_by=(SCALES + "test_mx_is_what_the_ocp_specifies[mxfp8-gaussian-standard-block]",),
    ),
    "a static scale hides NaN": Mutant(
        module=SCALING,
        old="return scales._replace(scale=jnp.where(jnp.isfinite(hidden), scales.scale, jnp.nan))",
        new="return scales",
        killed_by=(VISIBILITY + "test_static_scales_do_not_hide_what_is_not_finite[int8-nan]",),
    ),
    # Noise
    "rows share noise": Mutant(
        module=BITS,
        old="return _GENERATORS[rng](key, element_index_p.bind(like))",
        new="stride = np.uint32(like.shape[-1] | 1)\n"
        "    return _GENERATORS[rng](key, element_index_p.bind(like) % stride)",
        killed_by=(
            NOISE + "test_an_element_has_the_word_of_its_index[hash-shape3]",
            NOISE + "test_vmapped_examples_do_not_share_noise[int8]",
        ),
    ),
    "columns share noise": Mutant(
        module=BITS,
        old="return _GENERATORS[rng](key, element_index_p.bind(like))",
        new="stride = np.uint32(like.shape[-1] | 1)\n"
        "    return _GENERATORS[rng](key, element_index_p.bind(like) // stride)",
        killed_by=(NOISE + "test_an_element_has_the_word_of_its_index[hash-shape3]",),
    ),
    "vmapped examples share noise": Mutant(
        module=BITS,
        old="return element_index_p.bind(jnp.moveaxis(args[0], dims[0], 0)), 0",
        new="return element_index_p.bind(jnp.moveaxis(args[0], dims[0], 0)[0]), None",
        killed_by=(
            NOISE + "test_vmapped_examples_have_the_noise_of_a_leading_dimension",
            NOISE + "test_vmapped_examples_do_not_share_noise[mxfp8]",
        ),
    ),
    "a power of two from row to row": Mutant(
        module=BITS,
        old="return columns | 1",
        new="return columns",
        killed_by=(NOISE + "test_an_element_has_the_word_of_its_index[hash-shape4]",),
    ),
    "a hash with a round less": Mutant(
        module=BITS,
        old="return (h ^ (h >> np.uint32(15))) * _B",
        new="return h",
        killed_by=(
            NOISE + "test_streams_are_random[by_element]",
            NOISE + "test_the_hash_is_the_one_that_is_documented",
        ),
    ),
    "a hash with a constant factor": Mutant(
        module=BITS,
        old="h = h * ((h >> np.uint32(16)) | upper)",
        new="h = (h ^ (h >> np.uint32(16))) * _A",
        killed_by=(NOISE + "test_no_difference_of_three_powers_of_two_or_fewer_correlates[10000]",),
    ),
    "shards share noise where types tell nothing": Mutant(
        module="srjit.numerics.shards",
        old="return frozenset(a for a in axes if not _compat.varying_axes(lax.axis_index(a)))",
        new="return frozenset()",
        killed_by=(
            "jaxprs/test_noise_of_shards.py::"
            "test_every_shard_has_noise_of_its_own[stochastic_round-pmap]",
        ),
    ),
    "verify compares neighbours only": Mutant(
        module="srjit.diagnostics.verify.judgement",
        old="yield from residuals.pairs()",
        new='yield from (t for t in residuals.pairs() if t.what != "distances")',
        killed_by=(
            "diagnostics/test_verify_function.py::"
            "test_noise_that_comes_again_far_away_is_found[transposed]",
        ),
    ),
    "a mix that forgets half the key": Mutant(
        module=BITS,
        old="b = b ^ _lowbias32(a ^ jnp.asarray(number, jnp.uint32))",
        new="b = _lowbias32(a ^ jnp.asarray(number, jnp.uint32))",
        killed_by=(
            NOISE + "test_mixing_is_the_one_that_is_documented",
            NOISE + "test_a_step_is_one_number_whatever_holds_it[5]",
        ),
    ),
    "steps of 64 bits are cut off": Mutant(
        module=BITS,
        old="return np.uint32(word % 2**32), np.uint32(word >> 32)",
        new="return np.uint32(word % 2**32), np.uint32(0)",
        killed_by=(NOISE + "test_keys_and_steps_that_differ_give_different_noise",),
    ),
    # Programs
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
    # MS-EDEN
    "eden without its correction": Mutant(
        module=LAYOUTS,
        old="corrected = sf * correction.astype(sf.dtype)",
        new="corrected = sf",
        killed_by=(EDEN + "test_eden_is_the_published_algorithm_given_its_noise[gaussian]",),
    ),
    "eden with its scales rounded to nearest": Mutant(
        module=LAYOUTS,
        old='ELEMENTS["float8_e4m3fn"], how.draw and how.draw(sf))',
        new='ELEMENTS["float8_e4m3fn"], None)',
        killed_by=(EDEN + "test_eden_is_the_published_algorithm_given_its_noise[gaussian]",),
    ),
    "eden's blocks are corrected one by one": Mutant(
        module=LAYOUTS,
        old="return view.over_groups(per_block, EDEN_ROTATION // view.block)",
        new="return per_block",
        killed_by=(EDEN + "test_eden_is_the_published_algorithm_given_its_noise[gaussian]",),
    ),
    "all products share the signs of their rotations": Mutant(
        module="srjit.planning.planner",
        old="draws.draw(o, c.noise, planned.SIGNS, c.noise)",
        new="draws.draw(o, 0, planned.SIGNS, 0)",
        killed_by=(SIGNS + "[True-two sites]",),
    ),
    "operands of a product draw signs apart": Mutant(
        module="srjit.jaxprs.evaluator",
        old="before, signs = self._before(operand), self._signs(operand)",
        new="before, s = self._before(operand), self._signs(operand)\n"
        "        signs = s and mix(s, operand.side)",
        killed_by=(
            RECIPES + "test_every_builtin_recipe_runs_and_stays_near_the_truth[nvfp4-eden]",
        ),
    ),
    # Write-backs
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
    "parts of products are added in bfloat16 wherever": Mutant(
        module="srjit.passes.emit.partial_sums",
        old="for axis in lhs[a] & rhs[b]}",
        new="for axis in lhs[a] | rhs[b]}",
        killed_by=(
            PARTIAL + "test_a_product_is_of_the_programs_dtype_where_its_contraction_is_sharded"
            "[v5e-int8-i32]",
        ),
    ),
    "parts of products are sharded before they are added": Mutant(
        module="srjit.passes.emit.partial_sums",
        old="if whole is not None:",
        new="if False:",
        killed_by=(PARTIAL + "test_a_gradient_of_a_sharded_weight_is_whole_before_it_is_sharded",),
    ),
    "parts of products in functions are added exactly": Mutant(
        module="srjit.passes.emit.shardings",
        old="inlined = inline(copy, lambda name: name != operations.entry_of(copy))",
        new="inlined = inline(copy, lambda name: False)",
        killed_by=(PARTIAL + "test_so_it_is_in_loops_whose_bodies_are_functions",),
    ),
    # What verifies
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
        old="measured.get(o.shared, ())",
        new="[r.amax for r in records if (r.site, r.operand) == place]",
        killed_by=("api/test_calibrate.py::test_a_margin_is_a_factor",),
    ),
    # What no test of numbers sees
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
    "a gradient is of no earlier product": Mutant(
        module="srjit.planning.dependences",
        old="found = other.products & readers or (readers if named else 0)",
        new="found = 0",
        killed_by=(
            "passes/test_roles_without_names.py::test_roles_are_the_same_without_locations"
            "[a Hessian by two backward passes]",
        ),
    ),
    "only arguments that come first are parameters": Mutant(
        module="srjit.planning.parameters",
        old="if trained := self._updated():",
        new="return _usual(self)\n        if trained := self._updated():",
        killed_by=(ANYWHERE,),
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
        old="out = out * ((rest * power) * (other_rest * other_power)).astype(out.dtype)",
        new="out = out * ((rest * power * power) * (other_rest * other_power * other_power))\n"
        "        return out.astype(dtype)",
        killed_by=(
            "products/test_scales.py::"
            "test_products_scale_with_their_operands_as_long_as_they_are_normal[fp8-both]",
        ),
    ),
    # What is read of compiled programs
    "every part of an asynchronous collective counts": Mutant(
        module="srjit.aot.compiled_program",
        old="elif i is not e.instruction and identity in started:",
        new="elif False:",
        killed_by=(
            "aot/test_compiled_program.py::test_an_asynchronous_collective_is_counted_once_and_"
            "a_fused_reduce_scatter_is_one",
        ),
    ),
}
