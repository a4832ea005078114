"""Composites of srjit: what they are made of, and the JAX functions that they stand for."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from srjit._mlir import ir
from srjit.passes.emit.lowering import Library, signature_of
from srjit.passes.mlir import attributes, editing
from srjit.program.stablehlo import products

if TYPE_CHECKING:
    from srjit.choices import Rng, Wire
    from srjit.numerics.quantization import Quantization
    from srjit.products.product import Product
    from srjit.products.quantized import ScaledValues
    from srjit.targets import Target

QUANTIZE, SCALED_DOT = "srjit.quantize", "srjit.scaled_dot"
_FLAGS = ("draws", "flips", "remembers", "in_memory")  # of a Quantizer


def composite(
    library: Library,
    what: Quantizer | ScaledDot,
    operands: Sequence[Any],
    described: dict[str, Any],
) -> Any:
    """A new composite at the insertion point.

    Args:
      library: that its decomposition is lowered into: the function that every backend runs.
      what: what it stands for.
      operands: values.
      described: its attributes.
    """
    from srjit.targets.target import PORTABLE

    signature = signature_of(operands)
    symbol, types = library.lowered(
        what.label, what, what.on(PORTABLE), signature, result=what.result
    )
    return ir.Operation.create(
        "stablehlo.composite",
        results=types,
        operands=list(operands),
        attributes={
            "name": ir.StringAttr.get(what.composite),
            "decomposition": ir.FlatSymbolRefAttr.get(symbol),
            "composite_attributes": ir.DictAttr.get(described),
        },
    )


# -------------------------------------------------------------------------------------- quantize


@dataclasses.dataclass(frozen=True)
class Masked:
    """The product whose rows past the groups are zeroed before an operand is quantized."""

    product: Product
    side: int


@dataclasses.dataclass(frozen=True)
class Quantizer:
    """Everything static about the quantization of an operand.

    A function of the operand, of what its mask takes, of ``tensor<2xui32>`` if it draws noise, of
    another if it flips signs, and of the history of a delayed scale. Its results are the values,
    their scale if they have one left, and the amax that was seen if there is a history.

    Attributes:
      spec: how it is quantized.
      rng: the generator.
      draws: whether it takes a key.
      flips: whether it takes a key of random signs.
      remembers: whether it takes a history.
      in_memory: see ``PlannedSite``.
      masked: for ragged products.
      beside: whether the scales of blocks may stand beside the codes, as the second result: where
        a target multiplies them so.
    """

    composite: ClassVar[str] = QUANTIZE
    spec: Quantization
    rng: Rng
    draws: bool
    flips: bool = False
    remembers: bool = False
    in_memory: bool = False
    masked: Masked | None = None
    beside: bool = False
    result: ClassVar[Any] = None

    def on(self, target: Target) -> Callable[..., tuple[Any, ...]]:
        """The JAX function that a target runs."""

        def fun(x: Any, *rest: Any) -> tuple[Any, ...]:
            from srjit.jaxprs.evaluator import largest
            from srjit.targets.operand import quantize_operand
            from srjit.targets.target import Demand

            extras = list(rest)
            history = extras.pop() if self.remembers else None
            signs = extras.pop() if self.flips else None
            words = extras.pop() if self.draws else None
            groups = None
            if self.masked is not None:
                product, side = self.masked.product, self.masked.side
                groups = product.groups_of(side, x.shape, *extras)
                x = product.mask(side, x, *extras)
            key, signs = (None if w is None else (w[0], w[1]) for w in (words, signs))
            before = None if history is None else largest(history)
            demand = Demand(self.spec, self.rng, in_memory=self.in_memory)
            return self.results(quantize_operand(x, demand, key, target, before, signs, groups))

        return fun

    def results(self, q: ScaledValues) -> tuple[Any, ...]:
        """The results that its functions return of codes."""
        values = (q.merged,) if q.blocks is None or not self.beside else (q.values, q.blocks)
        return *values, *(v for v in (q.scale, q.seen) if v is not None)

    @property
    def label(self) -> str:
        """The name of its functions."""
        return f"srjit.quantize_{self.spec.format}_{self.spec.rounding}"

    def described(self) -> dict[str, Any]:
        """The composite's attributes."""
        found: dict[str, Any] = {
            "spec": attributes.encode(self.spec), "rng": attributes.encode(self.rng),
        }  # fmt: skip
        for name in _FLAGS:
            if getattr(self, name):
                found[name] = ir.UnitAttr.get()
        if self.masked is not None:
            found["masked"] = ir.UnitAttr.get()
        return found

    @classmethod
    def read(cls, op: Any) -> Quantizer | None:
        """From a composite; None if it masks, which its attributes do not say how.

        Raises:
          ValueError: its attributes are not what srjit writes.
        """
        from srjit.numerics.quantization import Quantization

        given = ir.DictAttr(op.attributes["composite_attributes"])
        if "masked" in given:
            return None
        try:
            rng = ir.StringAttr(given["rng"]).value
            spec = attributes.decode(Quantization, given["spec"])
        except KeyError as error:
            raise ValueError(f"it has no {error}") from None
        flags = {name: name in given for name in _FLAGS}
        return cls(spec, rng, **flags)  # type: ignore[arg-type]


@dataclasses.dataclass(frozen=True)
class Together:
    """Several quantizations of one operand.

    A function of the operand, and of what each of them takes beside it, in order; its results are
    theirs, in order.

    Attributes:
      quantizers: of one format and generator, that flip and remember nothing.
    """

    quantizers: tuple[Quantizer, ...]
    result: ClassVar[Any] = None

    def on(self, target: Target) -> Callable[..., tuple[Any, ...]]:
        """The JAX function that a target runs."""

        def fun(x: Any, *words: Any) -> tuple[Any, ...]:
            from srjit.targets.operand import quantize_together
            from srjit.targets.target import Demand

            left = iter(words)
            taken = [[next(left)] if q.draws else [] for q in self.quantizers]
            demands = [Demand(q.spec, q.rng) for q in self.quantizers]
            keys = [(w[0][0], w[0][1]) if w else None for w in taken]
            made = quantize_together(x, demands, keys, target)
            if made is None:  # one by one is as good
                pairs = zip(self.quantizers, taken, strict=True)
                return tuple(v for q, w in pairs for v in q.on(target)(x, *w))
            return tuple(
                v for q, m in zip(self.quantizers, made, strict=True) for v in q.results(m)
            )

        return fun

    @property
    def label(self) -> str:
        """The name of its functions."""
        return f"srjit.quantize_{self.quantizers[0].spec.format}_together"


# ------------------------------------------------------------------------------------- scaled_dot


@dataclasses.dataclass(frozen=True)
class ScaledDot:
    """Everything static about a product of quantized operands.

    Attributes:
      product: what is multiplied.
      dtype: of the result.
      lhs, rhs: how the operands were quantized; None: in high precision.
      counts: how many values each operand is.
      blocked: which operands have the scales of blocks beside their codes.
      reduce: as of ``Recipe.reduce``.
      wire: as of ``Recipe.wire``: then the last of its values is the key of what is sent.
      rng: the generator of that noise.
    """

    composite: ClassVar[str] = SCALED_DOT
    product: Product
    dtype: Any
    lhs: Quantization | None
    rhs: Quantization | None
    counts: tuple[int, int]
    blocked: tuple[bool, bool] = (False, False)
    reduce: str | None = None
    wire: Wire | None = None
    rng: Rng = "hash"

    def on(self, target: Target) -> Callable[..., Any]:
        """The JAX function of the operands' values that a target runs."""

        def fun(*values: Any) -> tuple[Any]:
            from srjit.products.quantized import scaled_dot
            from srjit.targets.target import PORTABLE
            from srjit.targets.wire import sending

            multiply, (a, b) = target.multiply, self.counts
            if self.wire:
                words, values = values[-1], values[:-1]
                if target is not PORTABLE:
                    multiply = sending(multiply, self.wire, (words[0], words[1]), self.rng)
            lhs, rhs = values[:a], values[a : a + b]
            out = scaled_dot(
                self.product,
                _operand(lhs, self.lhs, self.blocked[0]),
                _operand(rhs, self.rhs, self.blocked[1]),
                *values[a + b :],
                dtype=self.dtype,
                multiply=multiply,
                multiply_groups=target.multiply_groups,
                reduce="exact" if target is PORTABLE else self.reduce,
            )
            return (out,)

        return fun

    @property
    def result(self) -> Any:
        """The dtype of the result, which may be wider than the operands'."""
        return self.dtype

    @property
    def label(self) -> str:
        """The name of its functions."""
        formats = [s.format if s else "high" for s in (self.lhs, self.rhs)]
        return f"srjit.scaled_dot_{formats[0]}_{formats[1]}"

    def described(self, op: Any) -> dict[str, Any]:
        """The composite's attributes, of the multiplication ``op``."""
        inherited = {n: v for n, v in editing.attributes_of(op).items() if "srjit." not in n}
        found: dict[str, Any] = {
            "operation": ir.StringAttr.get(op.name),
            "parameters": ir.DictAttr.get(inherited),
            "operands": ir.DenseI64ArrayAttr.get(self.counts),
        }
        for side in ("lhs", "rhs"):
            if (spec := getattr(self, side)) is not None:
                found[side] = attributes.encode(spec)
        if getattr(self.product, "is_turned", False):
            found["is_turned"] = ir.UnitAttr.get()
        if self.reduce is not None:
            found["reduce"] = ir.StringAttr.get(self.reduce)
        if self.wire is not None:
            found["wire"], found["rng"] = map(ir.StringAttr.get, (self.wire, self.rng))
        return found

    @classmethod
    def read(cls, op: Any) -> ScaledDot:
        """From a composite.

        Raises:
          ValueError: its attributes are not what srjit writes.
        """
        from srjit.numerics.quantization import Quantization
        from srjit.products.dot import DotProduct
        from srjit.products.kinds import product_from

        try:
            given = ir.DictAttr(op.attributes["composite_attributes"])
            counts = tuple(int(v) for v in ir.DenseI64ArrayAttr(given["operands"]))
            parameters = products.Attributes(ir.DictAttr(given["parameters"]))
            name = ir.StringAttr(given["operation"]).value
            name = parameters["name"] if name == "stablehlo.composite" else name
        except KeyError as error:
            raise ValueError(f"it has no {error}") from None
        values = list(op.operands)[: -1 if "wire" in given else None]
        pair = [values[0], values[counts[0]], *values[sum(counts) :]]
        primitive, params = products.equation_from(
            name,
            parameters,
            signature_of(pair),
            signature_of(op.results)[0][1],
        )
        specs = [
            attributes.decode(Quantization, given[side]) if side in given else None
            for side in ("lhs", "rhs")
        ]
        ranks = tuple(len(shape) for shape, _ in signature_of(pair[:2]))
        product = product_from(primitive, params, ranks)
        if product is None:
            raise ValueError("srjit does not quantize such products")
        if "is_turned" in given and isinstance(product, DotProduct):
            product = dataclasses.replace(product, is_turned=True)
        dtype = signature_of(op.results)[0][1]
        reduce = ir.StringAttr(given["reduce"]).value if "reduce" in given else None
        sent = [ir.StringAttr(given[name]).value for name in ("wire", "rng") if name in given]
        return cls(
            product,
            dtype,
            specs[0],
            specs[1],
            (counts[0], counts[1]),
            reduce=reduce,
            **dict(zip(("wire", "rng"), sent, strict=False)),  # type: ignore[arg-type]
        )


def _operand(
    values: Sequence[Any], spec: Quantization | None, is_blocked: bool
) -> ScaledValues | Any:
    from srjit.products.quantized import ScaledValues

    if spec is None:
        return values[0]
    codes, *rest = values
    blocks = rest.pop(0) if is_blocked else None
    return ScaledValues(codes, rest[0] if rest else None, spec, blocks=blocks)
