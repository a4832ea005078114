"""Keras 3 on its JAX backend: keras.applications, and stacks of keras.layers."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import jax

from ..catalogue import (
    Case,
    cross_entropy,
    integers,
    mean_squared,
    model,
    normal,
    random_weights,
    sgd,
)


def _keras() -> Any:
    """Keras; it reads its backend from the environment when first imported."""
    os.environ["KERAS_BACKEND"] = "jax"
    import keras

    if keras.backend.backend() != "jax":
        raise RuntimeError("keras was imported with another backend than JAX")
    return keras


def _shapes(variables: Any) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in variables]


def _case(
    make: Callable[[], Any], objective: Callable[..., Any], inputs: jax.Array, target: Any
) -> Case:
    """A step of gradient descent through ``stateless_call``, as the Keras guide writes it.

    The network is made inside an abstract evaluation: its initialisers need not be compiled, and
    ``stateless_call`` reads none of the variables' own values.
    """
    made: list[Any] = []
    jax.eval_shape(lambda: made.append(make()))
    net = made[0]
    params = random_weights(lambda: _shapes(net.trainable_variables))
    state = random_weights(lambda: _shapes(net.non_trainable_variables))

    def loss(params: Any, state: Any, x: jax.Array, y: Any) -> Any:
        outputs, state = net.stateless_call(params, state, x, training=True)
        return objective(outputs, y), state

    def step(params: Any, state: Any, x: jax.Array, y: Any) -> Any:
        (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params, state, x, y)
        return sgd(params, grads), state, value

    args = (params, state, inputs, target)
    return Case(step, args, loss, args)


def _application(name: str, size: int = 32, **options: Any) -> Case:
    """A network of keras.applications without downloaded weights."""
    keras = _keras()
    make = getattr(keras.applications, name)
    shape = (size, size, 3)
    options |= {"weights": None, "input_shape": shape}
    if options.get("include_top", True):
        options |= {"classes": 10, "classifier_activation": None}
    return _case(lambda: make(**options), cross_entropy, normal(2, *shape), integers(10, 2))


@model("keras", "applications.MobileNetV2", slow=True)
def mobilenet_v2() -> Case:
    """Inverted bottlenecks with depthwise convolutions."""
    return _application("MobileNetV2", alpha=0.35)


@model("keras", "applications.EfficientNetB0", slow=True)
def efficientnet() -> Case:
    """Depthwise convolutions, squeeze and excitation."""
    return _application("EfficientNetB0")


@model("keras", "applications.ResNet50", slow=True)
def resnet() -> Case:
    """Bottlenecks at their full width."""
    return _application("ResNet50")


@model("keras", "applications.DenseNet121", slow=True)
def densenet() -> Case:
    """Every layer sees all before it."""
    return _application("DenseNet121")


@model("keras", "applications.ConvNeXtTiny", slow=True)
def convnext() -> Case:
    """Depthwise 7×7 convolutions and dense layers."""
    return _application("ConvNeXtTiny")


@model("keras", "applications.MobileNetV3Small", slow=True)
def mobilenet_v3() -> Case:
    """Squeeze and excitation, hard swish."""
    return _application("MobileNetV3Small", alpha=0.75, minimalistic=False)


@model("keras", "applications.VGG16")
def vgg() -> Case:
    """Convolutions, then wide dense layers."""
    return _application("VGG16", include_top=False, pooling="avg")


@model("keras", "transformer of MultiHeadAttention", runs=True)
def transformer() -> Case:
    """The text-classification block of the Keras examples."""
    keras = _keras()
    layers = keras.layers

    def make() -> Any:
        tokens = keras.Input((12,), dtype="int32")
        x = layers.Embedding(50, 32)(tokens)
        attended = layers.MultiHeadAttention(num_heads=4, key_dim=8)(x, x)
        x = layers.LayerNormalization()(x + attended)
        hidden = layers.Dense(32)(layers.Dense(64, activation="gelu")(x))
        x = layers.LayerNormalization()(x + hidden)
        logits = layers.Dense(10)(layers.GlobalAveragePooling1D()(x))
        return keras.Model(tokens, logits)

    return _case(make, cross_entropy, integers(50, 4, 12), integers(10, 4))


@model("keras", "grouped-query attention")
def grouped_queries() -> Case:
    """keras.layers.GroupQueryAttention and EinsumDense."""
    keras = _keras()
    layers = keras.layers

    def make() -> Any:
        inputs = keras.Input((10, 32))
        attention = layers.GroupQueryAttention(head_dim=8, num_query_heads=4, num_key_value_heads=2)
        x = layers.Add()([inputs, attention(inputs, inputs)])
        outputs = layers.EinsumDense("btd,de->bte", output_shape=(None, 32), bias_axes="e")(x)
        return keras.Model(inputs, outputs)

    return _case(make, mean_squared, normal(4, 10, 32), normal(4, 10, 32, seed=1))


@model("keras", "bidirectional LSTM")
def bidirectional_lstm() -> Case:
    """keras.layers.Bidirectional over LSTM, scanned."""
    keras = _keras()
    layers = keras.layers

    def make() -> Any:
        stack = [
            keras.Input((12,), dtype="int32"),
            layers.Embedding(50, 16),
            layers.Bidirectional(layers.LSTM(24, return_sequences=True)),
            layers.LSTM(16),
            layers.Dense(2),
        ]
        return keras.Sequential(stack)

    return _case(make, cross_entropy, integers(50, 4, 12), integers(2, 4))


@model("keras", "GRU over one-dimensional convolutions")
def convolved_gru() -> Case:
    """Conv1D, SeparableConv1D and GRU."""
    keras = _keras()
    layers = keras.layers

    def make() -> Any:
        stack = [
            keras.Input((32, 4)),
            layers.Conv1D(16, 5, strides=2, activation="relu", padding="same"),
            layers.SeparableConv1D(24, 3, activation="relu", padding="same"),
            layers.GRU(16),
            layers.Dense(2),
        ]
        return keras.Sequential(stack)

    return _case(make, cross_entropy, normal(4, 32, 4), integers(2, 4))


@model("keras", "convolutional autoencoder")
def autoencoder() -> Case:
    """Conv2D down, Conv2DTranspose up, DepthwiseConv2D between."""
    keras = _keras()
    layers = keras.layers

    def make() -> Any:
        stack = [
            keras.Input((16, 16, 3)),
            layers.Conv2D(16, 3, strides=2, padding="same", activation="relu"),
            layers.DepthwiseConv2D(3, padding="same", activation="relu"),
            layers.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2DTranspose(16, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2DTranspose(3, 3, strides=2, padding="same"),
        ]
        return keras.Sequential(stack)

    images = normal(4, 16, 16, 3)
    return _case(make, mean_squared, images, images)
