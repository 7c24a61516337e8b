"""A run's figures for TensorBoard: `tensorboard --logdir DIR`."""

import re
import time
from collections.abc import Mapping
from pathlib import Path

from hwnas.errors import UnavailableError


class TrainLog:
    """Appends scalars to a folder of event files; those of steps that a resumed run repeats are withdrawn."""

    def __init__(self, folder: Path, steps_done: int) -> None:
        """Opens the folder.

        Args:
            folder: Where earlier sessions of the run left their files.
            steps_done: What comes after it is withdrawn: no checkpoint held it.

        Raises:
            UnavailableError: TensorBoard is not installed.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UnavailableError("Logs are written with TensorBoard, which is not installed: run pip install tensorboard, or "
                                   "set log_steps to 0.") from None
        _give_earlier_names(folder)
        self._writer = SummaryWriter(folder, purge_step=steps_done + 1)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Records figures by name, of the step that `step` counts as done."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Hands what was recorded to the system, so that a checkpoint's log is complete."""
        self._writer.flush()

    def close(self) -> None:
        """Ends the session's file."""
        self._writer.close()


_NAME = re.compile(r"(events\.out\.tfevents\.)(\d{10})(\..*)")


def _give_earlier_names(folder: Path) -> None:
    """TensorBoard reads a folder's files in the order of their names, which begin with the second, then host and process.

    Of two sessions in one second, or with a clock that was set back between them, the later one could be read first, and the
    earlier one would then withdraw its records. So the names of earlier sessions are made earlier than now, in their order.
    """
    second = int(time.time())
    renamed: list[tuple[Path, Path]] = []
    for path in sorted(folder.glob("events.out.tfevents.*"), reverse=True):
        name = _NAME.fullmatch(path.name)
        if name:
            second = min(second - 1, int(name[2]))
            renamed.append((path, path.with_name(f"{name[1]}{second:010}{name[3]}")))
    for path, earlier in reversed(renamed):  # the first session's first, so that none replaces another's
        path.rename(earlier)
