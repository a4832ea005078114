"""Mistakes of programs on several devices: sums, shards, codes on the way."""

from __future__ import annotations

from mutants.mutant import Mutant

PARTIAL = "modules/test_partial_sums.py::"
WIRE = "modules/test_wire.py::"
ON_SHARDS = "modules/test_on_shards.py::"

MUTANTS = {
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
    "shards draw the noise of the first": Mutant(
        module="srjit.targets.tpu.on_shards",
        old="origin += place * jnp.uint32(local[d] * steps[d] % 2**32)",
        new="origin += place * jnp.uint32(0)",
        killed_by=(ON_SHARDS + "test_shards_have_the_bits_of_the_whole[int8-shape0-axes0]",),
    ),
    "what something else reads is gathered as codes": Mutant(
        module="srjit.planning.gathers",
        old="if uses and all(",
        new="if uses and any(",
        killed_by=(
            "jaxprs/test_gathered.py::test_what_something_else_reads_is_gathered_as_it_is[jaxpr]",
        ),
    ),
    "tokens are quantized by the amax of who sends them": Mutant(
        module="srjit.jaxprs.gathered",
        old="jnp.max(lax.all_gather(words, self.axes), axis=0)",
        new="jnp.broadcast_to(jnp.max(words), words.shape)",
        killed_by=(
            "jaxprs/test_gathered.py::"
            "test_tokens_travel_as_codes_by_the_scales_of_who_gets_them[int8-v5e]",
        ),
    ),
    "parts that are sent go to nearest": Mutant(
        module="srjit.targets.wire",
        old="mix(self._key, self._count)",
        new="None",
        killed_by=(WIRE + "test_sums_are_unbiased[copies-fp8]",),
    ),
    "devices send parts by one noise": Mutant(
        module="srjit.targets.wire",
        old="of_shards(key, own)",
        new="key",
        killed_by=(WIRE + "test_devices_draw_noise_of_their_own",),
    ),
    "calls of one function are sharded alike": Mutant(
        module="srjit.passes.emit.on_shards",
        old="if is_meant(op):",
        new="if False:",
        killed_by=(ON_SHARDS + "test_so_it_is_in_loops[jaxpr]",),
    ),
}
