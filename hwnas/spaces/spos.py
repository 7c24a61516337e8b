"""Single Path One-Shot's block space (Guo et al., arXiv 1904.00420, sec. 3.4 and Table 1), as in the released code.

20 choice blocks of four options: ShuffleNetV2 units with kernel 3, 5 or 7 and the Xception variant.
"""

from hwnas.ir.blocks import Block, Head, ShuffleUnit, Stem
from hwnas.ir.shape import TensorShape
from hwnas.ir.space import Decision, Fixed, SearchSpace

_STAGES = ((64, 4), (160, 4), (320, 8), (640, 4))  # width, choice blocks; the first of each has stride 2
_CPU_STAGES = ((48, 2), (96, 4), (192, 2))


def choice_block_options(width: int, stride: int) -> dict[str, Block]:
    """The four choices, in the released code's order (ids 0 to 3)."""
    return {
        "shuffle_3x3": ShuffleUnit(width, 3, stride),
        "shuffle_5x5": ShuffleUnit(width, 5, stride),
        "shuffle_7x7": ShuffleUnit(width, 7, stride),
        "xception": ShuffleUnit(width, 3, stride, xception=True),
    }


def build_spos() -> SearchSpace:
    """The published space: 4^20 networks at 224x224, 1000 classes."""
    return _build("spos", TensorShape(3, 224, 224), Stem(16), _STAGES, Head(1000, 1024, dropout=0.1, bias=False),
                  "Single Path One-Shot: 20 choice blocks (arXiv 1904.00420)")


def build_spos_cpu(classes: int = 36) -> SearchSpace:
    """The same blocks at 32x32, 8 decisions: CPU-sized."""
    return _build("spos-cpu", TensorShape(3, 32, 32), Stem(24, stride=1), _CPU_STAGES, Head(classes, 256),
                  "Single Path One-Shot's choice blocks at 32x32; CPU-sized")


def _build(name: str, input_shape: TensorShape, stem: Stem, stages: tuple[tuple[int, int], ...], head: Head,
           description: str) -> SearchSpace:
    layers: list[Fixed | Decision] = [Fixed("stem", stem)]
    for stage, (width, blocks) in enumerate(stages, 1):
        layers += [Decision(f"stage{stage}_{index + 1}", choice_block_options(width, 2 if index == 0 else 1))
                   for index in range(blocks)]
    return SearchSpace(name, input_shape, (*layers, Fixed("head", head)), description)
