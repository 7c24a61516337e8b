"""Single Path One-Shot (Guo et al., arXiv 1904.00420, sec. 3.4 and Table 1), as in the released code: spaces and networks.

20 choice blocks. The block space chooses among four: ShuffleNetV2 units with kernel 3, 5 or 7 and the Xception variant. The
channel space chooses the width inside each block, the *mid channels*: a ratio from 0.2 to 2.0 of half the block's output
width, cut off rather than rounded. Widths between blocks stay. The joint space chooses both.

An option with a ratio is named by its tenths: `shuffle_3x3_x14` has 1.4 times the mid channels of `shuffle_3x3`.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from hwnas.errors import InputError
from hwnas.ir.architecture import Architecture
from hwnas.ir.blocks import Block, Head, ShuffleUnit, Stem
from hwnas.ir.network import Network
from hwnas.ir.shape import TensorShape
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.spaces.reference import Published, ReferenceNetwork

_KERNELS = {"shuffle_3x3": 3, "shuffle_5x5": 5, "shuffle_7x7": 7, "xception": 3}
CHOICES = tuple(_KERNELS)
"""Option names by the released code's block id."""
RATIOS = (2, 4, 6, 8, 10, 12, 14, 16, 18, 20)
"""Mid channels in tenths, by scale id; the released code lists the first eight."""
_CPU_RATIOS = (6, 10, 14)


class _Skeleton(NamedTuple):
    """What the choice blocks stand in; a stage is its width and number of choice blocks, the first of stride 2."""

    input_shape: TensorShape
    stem: Stem
    stages: tuple[tuple[int, int], ...]
    head: Head


_PUBLISHED = _Skeleton(TensorShape(3, 224, 224), Stem(16), ((64, 4), (160, 4), (320, 8), (640, 4)),
                       Head(1000, 1024, dropout=0.1, bias=False))
_DEPTH = 20  # choice blocks of the published skeleton


def choice_block(choice: str, width: int, stride: int, ratio: int | None = None) -> ShuffleUnit:
    """One of the `CHOICES`; `ratio` in tenths sets its mid channels."""
    mid_channels = None if ratio is None else width // 2 * ratio // 10
    return ShuffleUnit(width, _KERNELS[choice], stride, mid_channels, choice == "xception")


def choice_block_options(width: int, stride: int) -> dict[str, Block]:
    """The four choices, in the order of their ids."""
    return {choice: choice_block(choice, width, stride) for choice in CHOICES}


def channel_options(width: int, stride: int, choices: Sequence[str] = CHOICES,
                    ratios: Sequence[int] = RATIOS) -> dict[str, Block]:
    """Every choice with every ratio (in tenths), choice by choice."""
    return {f"{choice}_x{ratio:02}": choice_block(choice, width, stride, ratio) for choice in choices for ratio in ratios}


def build_spos() -> SearchSpace:
    """The published block space: 4^20 networks at 224x224, 1000 classes."""
    return _build("spos", _PUBLISHED, lambda _, width, stride: choice_block_options(width, stride),
                  "Single Path One-Shot: 20 choice blocks (arXiv 1904.00420)")


def build_spos_channels(blocks: Sequence[int] = (0,) * _DEPTH) -> SearchSpace:
    """The published channel space: 10^20 networks of given blocks.

    Args:
        blocks: 20 block ids; the default is the paper's all-choice_3.

    Raises:
        InputError: Not 20 block ids.
    """
    choices = [CHOICES[block] for block in _checked_ids(blocks, "block", CHOICES)]
    return _build("spos-channels", _PUBLISHED,
                  lambda index, width, stride: channel_options(width, stride, (choices[index],)),
                  "Single Path One-Shot: mid channels of 20 given blocks (arXiv 1904.00420)")


def build_spos_blocks_channels() -> SearchSpace:
    """The published joint space: 40^20 networks."""
    return _build("spos-blocks-channels", _PUBLISHED, lambda _, width, stride: channel_options(width, stride),
                  "Single Path One-Shot: 20 choice blocks and their mid channels (arXiv 1904.00420)")


def build_spos_cpu(classes: int = 36) -> SearchSpace:
    """The same blocks at 32x32, 8 decisions: CPU-sized."""
    return _build("spos-cpu", _cpu_skeleton(classes), lambda _, width, stride: choice_block_options(width, stride),
                  "Single Path One-Shot's choice blocks at 32x32; CPU-sized")


def build_spos_blocks_channels_cpu(classes: int = 36) -> SearchSpace:
    """The blocks of `spos-cpu`, each with mid-channel ratios 0.6, 1.0 and 1.4: 12^8 networks, CPU-sized."""
    return _build("spos-blocks-channels-cpu", _cpu_skeleton(classes),
                  lambda _, width, stride: channel_options(width, stride, ratios=_CPU_RATIOS),
                  "Single Path One-Shot's choice blocks and their mid channels at 32x32; CPU-sized")


def spos_architecture(block_ids: Sequence[int], scale_ids: Sequence[int] | None = None) -> Architecture:
    """The path that the released code writes as a vector of ids.

    Args:
        block_ids: 20 indices into `CHOICES`.
        scale_ids: 20 indices into `RATIOS`; None for a path of `spos`, otherwise it is one of `spos-blocks-channels`.

    Raises:
        InputError: Not 20 ids, or an id that does not exist.
    """
    return _path(block_ids, scale_ids)[1]


def _path(block_ids: Sequence[int], scale_ids: Sequence[int] | None = None) -> tuple[SearchSpace, Architecture]:
    options = [CHOICES[block] for block in _checked_ids(block_ids, "block", CHOICES)]
    if scale_ids is not None:
        scales = _checked_ids(scale_ids, "scale", RATIOS)
        options = [f"{option}_x{RATIOS[scale]:02}" for option, scale in zip(options, scales, strict=True)]
    space = build_spos() if scale_ids is None else build_spos_blocks_channels()
    names = [decision.name for decision in space.decisions]
    return space, space.architecture(dict(zip(names, options, strict=True)))


def _checked_ids(ids: Sequence[int], kind: str, values: Sequence[object]) -> list[int]:
    if len(ids) != _DEPTH or not all(index in range(len(values)) for index in ids):
        raise InputError(f"Single Path One-Shot has {_DEPTH} choice blocks, each with a {kind} id from 0 to {len(values) - 1}, "
                         f"but got {' '.join(map(str, ids))!r}: give {_DEPTH} such ids.")
    return list(ids)


def _cpu_skeleton(classes: int) -> _Skeleton:
    return _Skeleton(TensorShape(3, 32, 32), Stem(24, stride=1), ((48, 2), (96, 4), (192, 2)), Head(classes, 256))


def _build(name: str, skeleton: _Skeleton, options: Callable[[int, int, int], dict[str, Block]], description: str) -> SearchSpace:
    """`options` gets the index of the choice block, its width and its stride."""
    decisions: list[Decision] = []
    for stage, (width, blocks) in enumerate(skeleton.stages, 1):
        decisions += [Decision(f"stage{stage}_{index + 1}", options(len(decisions) + index, width, 1 if index else 2))
                      for index in range(blocks)]
    return SearchSpace(name, skeleton.input_shape, (Fixed("stem", skeleton.stem), *decisions, Fixed("head", skeleton.head)),
                       description)


def _reference(name: str, published: Published, note: str, block_ids: str, scale_ids: str = "") -> ReferenceNetwork:
    """A network by the digits of its ids; spaces stand between stages."""
    path = partial(_path, _digits(block_ids), _digits(scale_ids) or None)

    def build() -> Network:
        space, architecture = path()
        return space.network(architecture)

    return ReferenceNetwork(name, build, published, note, lambda: path()[1])


def _digits(text: str) -> tuple[int, ...]:
    return tuple(int(digit) for digit in text.replace(" ", ""))


_PAPER = "Guo et al., arXiv 1904.00420"
_UNIFORM = (  # by block id: name, published MACs, parameters and top-1, and how the count differs
    ("3x3", 324_000_000, 3_100_000, 73.4, "295,842,496 (-8.7%)",
     "a uniform ratio of about 1.12 reaches them with 3.29M weights, where the published 3.1M fits 1.0"),
    ("5x5", 321_000_000, None, 73.5, "313,654,976 (-2.3%)", "a uniform ratio of about 1.03 reaches them"),
    ("7x7", 327_000_000, None, 73.6, "340,373,696 (+4.1%)", "a uniform ratio of about 0.96 reaches them"),
    ("xception", 326_000_000, None, 73.5, "358,825,920 (+10.1%)", "a uniform ratio of about 0.92 reaches them"),
)
NETWORKS: tuple[ReferenceNetwork, ...] = (
    _reference(
        "spos-block-search", Published(323_000_000, 3_500_000, 74.4, "megvii-model/SinglePathOneShot, README.md"),
        "3.5M is the weights alone: 3,529,312 + 29,152 of batch norm = 3,558,464. A released run; the paper reports another "
        "(319M, top-1 74.3).",
        "2101 2020 20230000 3233"),
    _reference(
        "spos-block-channel-search",
        Published(328_000_000, 3_400_000, 74.7, f"{_PAPER}, Table 4; ids: megvii-model/ShuffleNet-Series, OneShot"),
        "Mid channels are cut off to whole numbers; rounding them would give 328,654,464 MACs.",
        "0031 1100 20211020 2132", "6535 2634 25754674 4543"),
    *(_reference(
        f"spos-all-{name}", Published(macs, parameters, top1, f"{_PAPER}, Tables 3 and 4"),
        f"The published MACs are not reproduced: plain blocks at ratio 1.0 count {counted}. The paper's four uniform networks "
        f"lie close together, so their widths must have been adjusted, but the released code does not say how; {fit}.",
        str(block) * _DEPTH)
      for block, (name, macs, parameters, top1, counted, fit) in enumerate(_UNIFORM)),
    _reference(
        "spos-mmrazor", Published(330_000_000, 3_350_000, 73.87, "open-mmlab/mmrazor, configs/nas/mmcls/spos"),
        "0.33G is not reproduced: convolutions and the classifier count 317,023,040 MACs. It is either the search's limit or was "
        "counted by a wider rule.",
        "2020 3110 01010312 2013"),
)
