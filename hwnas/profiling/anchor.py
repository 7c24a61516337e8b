"""The anchor network: the yardstick that every workload is timed in turn with.

Small, fixed for ever (its hash is in every table), and made of what mobile networks are made of, so that a change
of clock moves it as it moves them. A different anchor gets a different name; tables of different anchors never mix.
"""

import hashlib
from functools import cache

from hwnas.ir.blocks import Head, MBConv, Stem
from hwnas.ir.network import Network, build_network
from hwnas.ir.shape import TensorShape
from hwnas.lower.onnx import to_onnx

ANCHOR_NAME = "mobile-64/1"


def build_anchor() -> Network:
    """A MobileNetV2-like network at 64x64, about half a millisecond on one modern CPU core."""
    return build_network(TensorShape(3, 64, 64), [
        ("stem", Stem(16)),
        ("stage1_1", MBConv(24, 3, 3, 2)), ("stage1_2", MBConv(24, 3, 3)),
        ("stage2_1", MBConv(40, 5, 3, 2)), ("stage2_2", MBConv(40, 5, 3)),
        ("stage3_1", MBConv(80, 3, 6, 2)), ("stage3_2", MBConv(80, 3, 6)),
        ("head", Head(10, 160)),
    ])


@cache
def anchor_model() -> bytes:
    """The anchor as ONNX bytes, weights and all: the same on every machine."""
    return to_onnx(build_anchor(), seed=0).SerializeToString(deterministic=True)


@cache
def anchor_sha256() -> str:
    """Identity of the anchor's network: name and structure, not the bytes, which the onnx version may lay out anew."""
    network = build_anchor()
    text = repr((ANCHOR_NAME, network.nodes))
    return hashlib.sha256(text.encode()).hexdigest()
