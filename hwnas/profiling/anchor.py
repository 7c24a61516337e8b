"""The anchor networks: the yardsticks that every workload is timed in turn with.

Fixed for ever (their hashes are in the tables), and made of what mobile networks are made of, so that a change of clock moves
them as it moves what they are timed with. The clock is not all that changes: who shares a machine shares its outer caches and its
memory, too, of which a network on small images needs little and one on large images much. So there is an anchor for each. A
different anchor gets a different name; measurements with different anchors never mix.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache

from hwnas.ir.blocks import Head, MBConv, Stem
from hwnas.ir.network import Network, build_network
from hwnas.ir.shape import TensorShape
from hwnas.latency.table import LARGE_INPUT
from hwnas.lower.onnx import to_onnx

SMALL_ANCHOR = "mobile-64/1"
LARGE_ANCHOR = "mobile-224/1"


def _mobile_64() -> Network:
    """A MobileNetV2-like network at 64x64, a tenth to half a millisecond on one modern CPU core."""
    return build_network(TensorShape(3, 64, 64), [
        ("stem", Stem(16)),
        ("stage1_1", MBConv(24, 3, 3, 2)), ("stage1_2", MBConv(24, 3, 3)),
        ("stage2_1", MBConv(40, 5, 3, 2)), ("stage2_2", MBConv(40, 5, 3)),
        ("stage3_1", MBConv(80, 3, 6, 2)), ("stage3_2", MBConv(80, 3, 6)),
        ("head", Head(10, 160)),
    ])


def _mobile_224() -> Network:
    """A MobileNetV2-like network at 224x224, a few milliseconds on one modern CPU core."""
    return build_network(TensorShape(3, 224, 224), [
        ("stem", Stem(32)),
        ("stage1_1", MBConv(24, 3, 6, 2)), ("stage1_2", MBConv(24, 3, 6)),
        ("stage2_1", MBConv(40, 5, 6, 2)), ("stage2_2", MBConv(40, 5, 6)),
        ("stage3_1", MBConv(80, 3, 6, 2)), ("stage3_2", MBConv(80, 5, 6)), ("stage3_3", MBConv(80, 3, 6)),
        ("stage4_1", MBConv(160, 5, 6, 2)), ("stage4_2", MBConv(160, 3, 6)), ("stage4_3", MBConv(160, 5, 6)),
        ("head", Head(10, 640)),
    ])


ANCHORS: Mapping[str, Callable[[], Network]] = {SMALL_ANCHOR: _mobile_64, LARGE_ANCHOR: _mobile_224}


def anchor_for(input_shape: Sequence[int]) -> str:
    """The name of the anchor for models whose input has that shape, batch included."""
    return LARGE_ANCHOR if math.prod(input_shape) >= LARGE_INPUT else SMALL_ANCHOR


@cache
def anchor_model(name: str = SMALL_ANCHOR) -> bytes:
    """An anchor as ONNX bytes, weights and all: the same on every machine."""
    return to_onnx(ANCHORS[name](), seed=0).SerializeToString(deterministic=True)


@cache
def anchor_sha256(name: str = SMALL_ANCHOR) -> str:
    """Identity of an anchor's network: name and structure, not the bytes, which the onnx version may lay out anew."""
    text = repr((name, ANCHORS[name]().nodes))
    return hashlib.sha256(text.encode()).hexdigest()


def anchor_name(sha256: object) -> str | None:
    """The name of the anchor with that identity; None where this version has no such anchor."""
    return next((name for name in ANCHORS if anchor_sha256(name) == sha256), None)
