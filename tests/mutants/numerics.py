"""Planted mistakes in numbers: rounding, scales, noise."""

from __future__ import annotations

from mutants.mutant import Mutant

ROUNDING = "srjit.numerics.rounding"
SCALING = "srjit.numerics.scaling"
BITS = "srjit.numerics.random_bits"
LAYOUTS = "srjit.numerics.scale_layouts"
NEAREST = "numerics/test_nearest_rounding.py::"
STOCHASTIC = "numerics/test_stochastic_rounding.py::"
SCALES = "numerics/test_scales.py::"
EDEN = "numerics/test_eden_scales.py::"
NOISE = "numerics/test_noise.py::"
EAGER = "numerics/test_eager.py::"
VISIBILITY = "numerics/test_visibility.py::"
AVERAGES = "numerics/test_averages.py::"
SIGNS = "jaxprs/test_noise.py::test_products_draw_signs_of_their_own"
RECIPES = "recipes/test_recipes.py::"

MUTANTS = {
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
        old="draws.draw(c.occurrence, c.noise, planned.SIGNS, c.noise)",
        new="draws.draw(c.occurrence, 0, planned.SIGNS, 0)",
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
    # What runs outside of a trace
    "rounding without a trace is operation by operation": Mutant(
        module="srjit.numerics.encode",
        old='@functools.partial(jax.jit, static_argnames=("storage", "rng"), inline=True)',
        new="@functools.partial(lambda f: f)",
        killed_by=(EAGER + "test_a_new_shape_is_one_new_program[stochastic_round]",),
    ),
    "quantizing without a trace is operation by operation": Mutant(
        module="srjit.numerics.encode",
        old='@functools.partial(jax.jit, static_argnames=("spec", "rng"), inline=True)',
        new="@functools.partial(lambda f: f)",
        killed_by=(EAGER + "test_a_new_shape_is_one_new_program[quantize]",),
    ),
    "a traced rounding is a call": Mutant(
        module="srjit.numerics.encode",
        old='static_argnames=("storage", "rng"), inline=True',
        new='static_argnames=("storage", "rng")',
        killed_by=(
            EAGER + "test_inside_of_a_trace_it_is_the_operations_themselves[stochastic_round]",
        ),
    ),
}
