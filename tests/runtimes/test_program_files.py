"""Files of a program on the disk: only those asked for, for nobody else, and not for longer than needed."""

import stat
import tempfile

import pytest

from hwnas.errors import UnavailableError
from hwnas.runtimes.base import Program
from hwnas.runtimes.program_files import files_on_disk

PROGRAM = Program({"graph": b"a graph", "weights": bytes(1000), "more": b""}, (), ())


def test_files_are_there_for_this_user_only_and_then_gone():
    with files_on_disk(PROGRAM, ("graph", "weights")) as folder:
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == {"graph": b"a graph", "weights": bytes(1000)}
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert not folder.exists()


def test_they_are_gone_after_an_error_too():
    with pytest.raises(ValueError, match="on purpose"), files_on_disk(PROGRAM, ("graph",)) as folder:
        raise ValueError("on purpose")
    assert not folder.exists()


def test_an_error_of_the_system_within_is_the_callers_own():
    with pytest.raises(OSError, match="on purpose"), files_on_disk(PROGRAM, ("graph",)):
        raise OSError("on purpose")


def test_without_space_for_them_the_variable_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(UnavailableError, match="TMPDIR"), files_on_disk(PROGRAM, ("graph",)):
        pass
