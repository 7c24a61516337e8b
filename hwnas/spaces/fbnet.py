"""FBNet's space and networks (Wu et al., arXiv 1812.03443, Tables 1 and 2).

22 layers of nine candidates each: kernel {3, 5} x (expansion {1, 3, 6}, or expansion 1 with two groups), or skip. Skip is the
identity; where a layer changes the shape it is, as in the released code, a 1x1 convolution of the layer's stride.

FBNet-A, -B and -C exist twice. As released (facebookresearch/mobile-vision), a candidate of expansion 1 has no first 1x1
convolution. In the paper's form, which its counts need, it has one: so do the `-paper` networks and the spaces.
"""

from collections.abc import Iterator
from functools import partial

from hwnas.ir.architecture import Architecture
from hwnas.ir.blocks import Block, ConvBlock, FBNetBlock, Head, Identity, Stem
from hwnas.ir.network import Network, build_network
from hwnas.ir.shape import TensorShape
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.spaces.reference import Published, ReferenceNetwork

_SHAPE = TensorShape(3, 224, 224)
_STEM = Stem(16)
_STAGES = ((16, 1, 1), (24, 4, 2), (32, 4, 2), (64, 4, 2), (112, 4, 1), (184, 4, 2), (352, 1, 1))  # width, layers, stride
_CPU_STAGES = ((16, 2), (24, 3), (48, 3))  # width, searched layers
_CANDIDATES = {  # kernel, expansion, groups
    "k3_e1": (3, 1, 1), "k3_e1_g2": (3, 1, 2), "k3_e3": (3, 3, 1), "k3_e6": (3, 6, 1),
    "k5_e1": (5, 1, 1), "k5_e1_g2": (5, 1, 2), "k5_e3": (5, 3, 1), "k5_e6": (5, 6, 1)}

_A = ("skip k3_e3 k3_e1 skip skip k5_e6 k3_e3 k5_e1 k3_e3 k5_e6 k5_e3 "
      "k5_e1_g2 k5_e6 k3_e6 k5_e1_g2 k5_e3 k3_e1_g2 k5_e6 k5_e6 k5_e3 k5_e6 k5_e6")
_B = ("k3_e1 k3_e6 k5_e1 k3_e1 k3_e1 k5_e6 k5_e3 k3_e6 k5_e6 k5_e6 k5_e6 "
      "skip k5_e3 k5_e6 k3_e1 k5_e1 k5_e3 k5_e6 k5_e1 k5_e6 k5_e6 k3_e6")
_B_PAPER = _B.replace("k5_e6 skip", "k5_e1 skip")  # layer 11
_C = ("k3_e1 k3_e6 skip k3_e1 k3_e1 k5_e6 k5_e3 k5_e6 k3_e6 k5_e6 k5_e3 "
      "k5_e6 k5_e6 k5_e6 k5_e6 k5_e6 k5_e3 k5_e6 k5_e6 k5_e6 k5_e6 k3_e6")


def candidates(width: int, stride: int = 1, *, keeps_shape: bool = True, expand_always: bool = True) -> dict[str, Block]:
    """The nine options of a layer, in the order of the paper's Table 2.

    Args:
        width: Output width.
        stride: Of the layer.
        keeps_shape: Whether skipping needs no layer.
        expand_always: The paper's form of expansion 1; False for the released one.
    """
    options: dict[str, Block] = {name: FBNetBlock(width, kernel, expansion, stride, groups, expand_always)
                                 for name, (kernel, expansion, groups) in _CANDIDATES.items()}
    return {**options, "skip": Identity() if keeps_shape else ConvBlock(width, 1, stride)}


def build_fbnet(last_channels: int = 1984) -> SearchSpace:
    """The published space: 9^22 networks at 224x224, 1000 classes.

    Args:
        last_channels: Width of the last convolution: 1984 as in FBNet-B and -C, or 1504 as in FBNet-A.
    """
    name = "fbnet" if last_channels == 1984 else f"fbnet-{last_channels}"
    layers = [Decision(layer, options) for layer, options in _layers(expand_always=True)]
    return SearchSpace(name, _SHAPE, (Fixed("stem", _STEM), *layers, Fixed("head", Head(1000, last_channels))),
                       f"FBNet: 22 layers of 9 candidates, last convolution {last_channels} wide (arXiv 1812.03443)")


def build_fbnet_cpu(classes: int = 36) -> SearchSpace:
    """The same candidates at 32x32, 8 decisions: CPU-sized. Reductions are fixed for the reason that `mobile_cpu` gives."""
    layers: list[Fixed | Decision] = [Fixed("stem", Stem(_CPU_STAGES[0][0], 3, 1))]
    for stage, (width, count) in enumerate(_CPU_STAGES, 1):
        if stage > 1:
            layers.append(Fixed(f"reduce{stage}", FBNetBlock(width, 3, 3, 2)))
        layers += [Decision(f"stage{stage}_{index + 1}", candidates(width)) for index in range(count)]
    return SearchSpace("fbnet-cpu", TensorShape(3, 32, 32), (*layers, Fixed("head", Head(classes, 128))),
                       "FBNet's candidates at 32x32; CPU-sized")


def _layers(*, expand_always: bool) -> Iterator[tuple[str, dict[str, Block]]]:
    """The 22 layers: name and options."""
    number, reaching = 0, _STEM.out_channels
    for width, count, stride in _STAGES:
        for index in range(count):
            number += 1
            step = 1 if index else stride
            yield f"layer{number}", candidates(width, step, keeps_shape=step == 1 and width == reaching,
                                               expand_always=expand_always)
            reaching = width


def _released(choices: str, last_channels: int) -> Network:
    layers = [(name, options[choice]) for (name, options), choice
              in zip(_layers(expand_always=False), choices.split(), strict=True)]
    return build_network(_SHAPE, [("stem", _STEM), *layers, ("head", Head(1000, last_channels))])


def _path(choices: str, last_channels: int) -> Architecture:
    space = build_fbnet(last_channels)
    return space.architecture({decision.name: choice for decision, choice in zip(space.decisions, choices.split(), strict=True)})


def _paper(choices: str, last_channels: int) -> Network:
    return build_fbnet(last_channels).network(_path(choices, last_channels))


_README = "facebookresearch/mobile-vision README"
_SOURCE = "arXiv 1812.03443"

NETWORKS = (
    ReferenceNetwork("fbnet-a", partial(_released, _A, 1504), Published(244_500_000, 4_300_000, 73.3, _README),
                     "The release adds the average pool: 244,452,664 + 1504 * 49 = 244,526,360; its parameters are weights "
                     "alone."),
    ReferenceNetwork("fbnet-b", partial(_released, _B, 1984), Published(291_100_000, 4_800_000, 74.5, _README),
                     "The release adds the average pool: 291,004,424 + 1984 * 49 = 291,101,640; its parameters are weights "
                     "alone. Layer 11 is k5_e6, in the paper's form k5_e1."),
    ReferenceNetwork("fbnet-c", partial(_released, _C, 1984), Published(378_200_000, 5_500_000, 75.2, _README),
                     "The release adds the average pool: 378,136,224 + 1984 * 49 = 378,233,440; its parameters are weights "
                     "alone."),
    ReferenceNetwork("fbnet-a-paper", partial(_paper, _A, 1504), Published(249_000_000, 4_300_000, 73.0, _SOURCE),
                     "249,921,848. Two 3x3 depthwise convolutions for the 5x5 one of layer 13, the only single layer that fits, "
                     "make it the release's older 249.4M: less 7 * 384 * 14 * 14 = 526,848. A path of `fbnet-1504`.",
                     partial(_path, _A, 1504)),
    ReferenceNetwork("fbnet-b-paper", partial(_paper, _B_PAPER, 1984), Published(295_000_000, 4_500_000, 74.1, _SOURCE),
                     "296,614,728. Two 3x3 depthwise convolutions for the 5x5 one of layer 9, a comment in the release, make it "
                     "the release's older 295.6M: less 7 * 192 * 28 * 28 = 1,053,696. Neither last width gives 4.5M parameters: "
                     "weights are 4,778,640 with 1984, and 4,129,680 with 1504.", partial(_path, _B_PAPER, 1984)),
    ReferenceNetwork("fbnet-c-paper", partial(_paper, _C, 1984), Published(375_000_000, 5_500_000, 74.9, _SOURCE),
                     "384,960,160. Two 3x3 depthwise convolutions for the 5x5 ones of layers 8 and 15, comments in the release, "
                     "make it the release's older 383.0M: less 7 * (192 * 28 * 28 + 672 * 14 * 14) = 1,975,680. About 375M takes "
                     "a last width of 1504 (374.2M is its FBNet-C1; 374,697,120 are the 5x5 ones without classifier), but 5.5M "
                     "takes 1984.", partial(_path, _C, 1984)),
)
