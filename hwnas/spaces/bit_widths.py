"""Bit-widths as options: ResNets of few bits, and the choice between precisions in any space of layers in order.

The ResNet spaces follow the bit-width search of Single Path One-Shot (arXiv 1904.00420, sec. 3.4): 1 to 4 bits for weights and
for activations; the first convolution and the classifier stay in full precision. One pair of bits holds for a residual
block, its shortcut included, because an option is a whole block. Option names are `w2_a4`: 2 bits of weights, 4 of
activations. What such networks cost is `BitOpsCost`; no runtime here has kernels for them.

`with_precisions` makes bit-width a choice in any other space, beside whatever that decides: blocks and widths, say. Where one
of the precisions is full precision, count it as well: `BitOpsCost(count_full_precision=True)`.
"""

from collections.abc import Callable, Mapping, Sequence

from hwnas.errors import InputError
from hwnas.ir.blocks import BasicBlock, Block, Head, Stem
from hwnas.ir.blocks import Sequence as BlockSequence
from hwnas.ir.quantized import BITS, HalfPrecision, Quantized, has_convolutions, is_non_negative
from hwnas.ir.shape import TensorShape
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.spaces.resnet import resnet_blocks

_RESNET_BITS = (1, 2, 3, 4)
_CPU_STAGES = ((16, 2), (32, 2), (64, 2))  # width, blocks


def _few_bits(weights: int, activations: int) -> Callable[[Block, bool], Block]:
    return lambda block, signed_input: Quantized(block, weights, activations, signed_input)


_DEPLOYABLE: Mapping[str, Callable[[Block, bool], Block]] = {  # runtimes have kernels for these
    "int8": lambda block, signed_input: Quantized(block, 8, 8, signed_input, integer=True),
    "bf16": lambda block, _: HalfPrecision(block, "bf16"),
    "fp16": lambda block, _: HalfPrecision(block, "fp16"),
    "fp32": lambda block, _: block,
}
PRECISIONS: Mapping[str, Callable[[Block, bool], Block]] = {
    **_DEPLOYABLE, **{f"w{weights}_a{activations}": _few_bits(weights, activations)
                      for weights in BITS for activations in BITS if (weights, activations) != (32, 32)}}
"""Name to how a block of that precision is made, given whether its input can be negative.

`int8` also rounds what sums and the like read, so that integer kernels follow one another; `w8_a8` does not, like the few-bit
papers."""


def bit_width_options(block: Block) -> dict[str, Block]:
    """A block whose input is never negative, with every pair of weight and activation bits."""
    return {f"w{weights}_a{activations}": Quantized(block, weights, activations, signed_input=False)
            for weights in _RESNET_BITS for activations in _RESNET_BITS}


def build_resnet_bits(depth: int, classes: int = 1000) -> SearchSpace:
    """ResNet-18 (16^8 networks) or -34 (16^16) at 224x224."""
    layers = resnet_blocks(depth, classes)
    return _build(f"resnet{depth}-bits", TensorShape(3, 224, 224), layers,
                  f"ResNet-{depth}: bits of weights and activations, block by block (arXiv 1904.00420)")


def build_resnet_bits_cpu(classes: int = 36) -> SearchSpace:
    """Six basic blocks at 32x32: 16^6 networks, CPU-sized."""
    residual = [(f"stage{stage}_{index + 1}", BasicBlock(width, stride=2 if stage > 1 and not index else 1))
                for stage, (width, count) in enumerate(_CPU_STAGES, 1) for index in range(count)]
    return _build("resnet-bits-cpu", TensorShape(3, 32, 32),
                  [("stem", Stem(_CPU_STAGES[0][0], stride=1)), *residual, ("head", Head(classes))],
                  "Residual blocks at 32x32: bits of weights and activations, block by block; CPU-sized")


def _build(name: str, shape: TensorShape, layers: Sequence[tuple[str, Block]], description: str) -> SearchSpace:
    return SearchSpace(name, shape, tuple(
        Decision(layer, bit_width_options(block)) if isinstance(block, BasicBlock) else Fixed(layer, block)
        for layer, block in layers), description)


def with_precisions(space: SearchSpace, precisions: Sequence[str] = ("int8", "fp32")) -> SearchSpace:
    """Makes each option of a space a choice of precision as well: `k3_e6` becomes `k3_e6_w2_a4` and `k3_e6_fp32`.

    Fixed layers stay as they are, and so do options with no convolution in them (a skip, a pool). Whether a block's input can
    be negative is decided from all that can come before it, so that 8 bits reach as far as they can.

    Args:
        space: Layers in order.
        precisions: Names of `PRECISIONS`.

    Returns:
        A space called `NAME+int8+fp32`.

    Raises:
        InputError: A precision is unknown or named twice, or the space has options of few bits already.
    """
    if not precisions or len(set(precisions)) < len(precisions) or not set(precisions) <= set(PRECISIONS):
        raise InputError(f"Precisions are one or more of {', '.join(_DEPLOYABLE)}, and w2_a4 for 2 bits of weights and 4 of "
                         f"activations, 1 to 8 or 32 (but fp32 for w32_a32), each named once; got {'+'.join(precisions)!r}.")
    layers: list[Fixed | Decision] = []
    non_negative = False  # what reaches the layer, whatever was chosen before
    names: dict[str, list[str]] = {}  # of the decision before: what each of its options became
    for layer, step in zip(space.layers, space.steps, strict=True):
        edges = [(step.options[edge.option], edge.parts[0].input_shape) for edge in step.edges]
        if isinstance(layer, Fixed):
            layers.append(layer)
        else:
            shapes = dict(edges)
            options = {option: _in_precisions(option, block, shapes[option], non_negative, precisions)
                       for option, block in layer.options.items()}
            after = {name: [each for one in allowed for each in names[one]]
                     for option, allowed in layer.after.items() for name in options[option]}
            layers.append(Decision(layer.name, [pair for blocks in options.values() for pair in blocks.items()], after=after,
                                   where_fits=layer.where_fits))
            names = {option: list(blocks) for option, blocks in options.items()}
        non_negative = all(is_non_negative(layer.options[option], shape, non_negative) for option, shape in edges)
    return SearchSpace("+".join((space.name, *precisions)), space.input_shape, tuple(layers),
                       f"{space.description}; in {' or '.join(precisions)}")


def _in_precisions(option: str, block: Block, shape: TensorShape, non_negative: bool, precisions: Sequence[str]
                   ) -> dict[str, Block]:
    if not has_convolutions(block, shape):
        return {option: block}
    return {f"{option}_{precision}": _in_precision(block, shape, non_negative, precision) for precision in precisions}


def _in_precision(block: Block, shape: TensorShape, non_negative: bool, precision: str) -> Block:
    if not has_convolutions(block, shape):
        return block
    if not isinstance(block, BlockSequence):
        return PRECISIONS[precision](block, not non_negative)
    inner = []
    for part in block.parts(shape):  # which are measured and trained on their own, and stay so
        inner.append(_in_precision(part.block, part.input_shape, non_negative, precision))
        non_negative = is_non_negative(part.block, part.input_shape, non_negative)
    return BlockSequence(tuple(inner))
