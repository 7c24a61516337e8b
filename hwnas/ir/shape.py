"""The shape of one activation tensor, without the batch dimension."""

from typing import NamedTuple


class TensorShape(NamedTuple):
    """Channels, height and width of one image's activation; a vector is `(channels, 1, 1)`."""

    channels: int
    height: int
    width: int

    @property
    def elements(self) -> int:
        """Number of scalars in the tensor."""
        return self.channels * self.height * self.width

    def __str__(self) -> str:
        return f"{self.channels}x{self.height}x{self.width}"
