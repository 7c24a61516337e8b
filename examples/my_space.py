"""A search space of one's own: 32x32 images, two stages, 36 classes. See docs/new-space.md.

    hwnas spaces examples/my_space.py:space --plot my_space.svg
"""

import hwnas


def options(width: int) -> dict[str, hwnas.Block]:
    """What a layer that keeps its shape chooses between: an option is a name and a block."""
    return {f"k{kernel}_e{expansion}": hwnas.MBConv(width, kernel, expansion) for kernel in (3, 5) for expansion in (2, 4)}


def stage(name: str, width: int) -> list[hwnas.Fixed | hwnas.Decision]:
    """A fixed layer that halves the resolution, then one block or two: the second may be skipped."""
    return [
        hwnas.Fixed(f"{name}_reduce", hwnas.MBConv(width, kernel=3, expansion=2, stride=2)),
        hwnas.Decision(f"{name}_1", options(width)),
        hwnas.Decision(f"{name}_2", options(width) | {"skip": hwnas.Identity()}),
    ]


space = hwnas.SearchSpace("my-space", (3, 32, 32), (
    hwnas.Fixed("stem", hwnas.Stem(16, stride=2)),
    *stage("stage1", 24),
    *stage("stage2", 40),
    hwnas.Fixed("head", hwnas.Head(classes=36, channels=96)),
), "Two stages at 32x32, kernel, expansion and depth")
