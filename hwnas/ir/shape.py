"""The shape of one activation tensor, without the batch dimension."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from hwnas.errors import InputError


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


def checked_shape(shape: Any) -> TensorShape:
    """The shape of an image as a user gives it.

    Raises:
        InputError: It is not three whole numbers of at least 1.
    """
    if not isinstance(shape, Sequence) or len(shape) != 3 or not all(
            isinstance(size, int) and not isinstance(size, bool) and 1 <= size < 1 << 16 for size in shape):
        raise InputError(f"An input shape is three whole numbers of at least 1 (channels, height, width), but is {shape!r}.")
    return TensorShape(*shape)
