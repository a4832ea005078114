"""Penzai: its transformers and layers, which name their axes."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from ..catalogue import (
    Case,
    cross_entropy,
    integers,
    mean_squared,
    model,
    normal,
    random_weights,
    sgd_case,
)


def _parts(make: Any) -> tuple[Any, Any]:
    """A model without its parameters, and random weights for them."""
    from penzai import pz

    bare, _ = pz.unbind_params(make(None), freeze=True)

    def init(key: jax.Array) -> Any:
        return pz.unbind_params(make(key), freeze=True)[1]

    return bare, random_weights(init, jax.random.key(0))


def _language_case(make: Any) -> Case:
    """Next-token prediction with a transformer of penzai.models."""
    from penzai import pz

    bare, params = _parts(make)

    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        net = pz.bind_variables(bare, params)
        named = pz.nx.wrap(tokens).tag("batch", "seq")
        positions = pz.nx.wrap(jnp.arange(tokens.shape[1])).tag("seq")
        logits = net(named, token_positions=positions).unwrap("batch", "seq", "vocabulary")
        return cross_entropy(logits[:, :-1], tokens[:, 1:])

    return sgd_case(loss, params, integers(64, 4, 10))


def _config(**options: Any) -> Any:
    from penzai.models.transformer.variants import llamalike_common

    return llamalike_common.LlamalikeTransformerConfig(
        num_kv_heads=2,
        query_head_multiplier=2,
        embedding_dim=32,
        projection_dim=8,
        mlp_hidden_dim=64,
        num_decoder_blocks=2,
        vocab_size=64,
        **options,
    )


@model("penzai", "Llama")
def llama() -> Case:
    """Grouped queries, SwiGLU, rotary positions."""
    from penzai.models.transformer.variants import llamalike_common

    config = _config(mlp_variant="swiglu", tie_embedder_and_logits=False)
    return _language_case(
        lambda key: llamalike_common.build_llamalike_transformer(config, init_base_rng=key)
    )


@model("penzai", "Gemma with a layer stack")
def gemma() -> Case:
    """The same blocks scanned, the embedding tied to the head."""
    from penzai.models.transformer.variants import llamalike_common

    config = _config(mlp_variant="geglu_approx", tie_embedder_and_logits=True, use_layer_stack=True)
    return _language_case(
        lambda key: llamalike_common.build_llamalike_transformer(config, init_base_rng=key)
    )


@model("penzai", "GPT-NeoX")
def gpt_neox() -> Case:
    """Attention and feed-forward in parallel."""
    from penzai.models.transformer.variants import gpt_neox as variant

    config = variant.GPTNeoXTransformerConfig(
        num_attention_heads=4,
        embedding_dim=32,
        projection_dim=8,
        mlp_hidden_dim=64,
        num_decoder_blocks=2,
        vocab_size=64,
        rope_subset_size=4,
        rope_wavelength=10000,
        layernorm_epsilon=1e-5,
        activation_fn="gelu_approx",
        parameter_dtype=jnp.float32,
        activation_dtype=jnp.float32,
    )
    return _language_case(lambda key: variant.build_gpt_neox_transformer(config, init_base_rng=key))


@model("penzai", "MLP")
def mlp() -> Case:
    """penzai.models.simple_mlp."""
    from penzai import pz
    from penzai.models import simple_mlp

    bare, params = _parts(lambda key: simple_mlp.MLP.from_config(key, [16, 64, 32, 4]))

    def loss(params: Any, x: jax.Array, y: jax.Array) -> jax.Array:
        net = pz.bind_variables(bare, params)
        outputs = net(pz.nx.wrap(x).tag("batch", "features"))
        return mean_squared(outputs.unwrap("batch", "features"), y)

    return sgd_case(loss, params, normal(32, 16), normal(32, 4))
