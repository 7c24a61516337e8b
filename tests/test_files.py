"""Files are written whole or not at all, and nothing is left beside them."""

import json
import math
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from hwnas.errors import InputError
from hwnas.files import locked, read_json, sha256_file, write_atomic, write_json

OLD, NEW = b"old " * 1000, b"new " * 100_000


def run(program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    lines = ["import os, resource, signal, sys", "from hwnas.files import write_atomic", *program.splitlines()]
    return subprocess.run([sys.executable, "-c", "\n".join(lines), *map(str, arguments)], text=True, capture_output=True,
                          timeout=60, check=False)


def test_text_and_bytes_are_written_and_folders_made(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "a" / "b" / "text.txt", "naïve – 1\n")
    assert path.read_bytes() == "naïve – 1\n".encode()
    assert write_atomic(path, b"\x00\xff").read_bytes() == b"\x00\xff"
    assert [entry.name for entry in path.parent.iterdir()] == ["text.txt"]


def test_a_file_can_be_read_by_others(tmp_path: Path) -> None:
    assert stat.S_IMODE(write_atomic(tmp_path / "shared", b"").stat().st_mode) == 0o644


def test_a_relative_path_stays_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_atomic("here.txt", "1")
    assert [entry.name for entry in tmp_path.iterdir()] == ["here.txt"]


def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    """A limit on the size of files stops the write half-way, as a full disk does."""
    path = tmp_path / "table.json"
    path.write_bytes(OLD)
    result = run("resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
                 "try: write_atomic(sys.argv[1], b'new ' * 100_000)\n"
                 "except OSError as error: print('refused', error.errno)", path)
    assert result.stdout.startswith("refused"), result.stderr
    assert path.read_bytes() == OLD
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("moment", ["fsync", "chmod", "replace"])
def test_a_kill_at_any_moment_leaves_the_old_file(tmp_path: Path, moment: str) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(OLD)
    result = run(f"os.{moment} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
                 "write_atomic(sys.argv[1], b'new ' * 100_000)", path)
    assert result.returncode == -signal.SIGKILL
    assert path.read_bytes() == OLD


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_an_interrupt_leaves_the_old_file_and_no_litter(tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(OLD)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, moment, interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, NEW)
    assert path.read_bytes() == OLD
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_in_the_way_is_an_error_without_litter(tmp_path: Path) -> None:
    (tmp_path / "table.json").mkdir()
    with pytest.raises(OSError, match=r"table\.json"):
        write_atomic(tmp_path / "table.json", NEW)
    assert [entry.name for entry in tmp_path.iterdir()] == ["table.json"]


def test_readers_see_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    """A reader at full speed beside a writer never meets a part of a file."""
    path = write_atomic(tmp_path / "table.json", OLD)
    program = ("import sys\nfrom hwnas.files import write_atomic\n"
               "for turn in range(200): write_atomic(sys.argv[1], (b'new ' * 100_000, b'old ' * 1000)[turn % 2])")
    with subprocess.Popen([sys.executable, "-c", program, str(path)]) as writer:
        seen = {path.read_bytes()}
        while writer.poll() is None:
            seen.add(path.read_bytes())
    assert writer.returncode == 0
    assert seen <= {OLD, NEW}


def test_json_goes_round(tmp_path: Path) -> None:
    document = {"a": [1, 2.5, None, True], "b": {"c": "ü"}}
    path = write_json(tmp_path / "a.json", document)
    assert read_json(path, "thing") == document == json.loads(path.read_text())
    assert path.read_text().endswith("}\n")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_json_without_meaning_elsewhere_is_not_written(tmp_path: Path, value: float) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", [value])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("content", "words"), [(b"", "truncated"), (b'{"a": [1, 2', "truncated"), (b"\xff\xfe", "truncated")])
def test_broken_json_is_refused_with_its_name(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "table.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"latency table .*table\.json .*{words}"):
        read_json(path, "latency table")
    with pytest.raises(InputError, match=r"latency table .*none\.json cannot be read"):
        read_json(tmp_path / "none.json", "latency table")


def test_hashes_are_those_of_sha256sum(tmp_path: Path) -> None:
    path = write_atomic(tmp_path / "abc", "abc")
    assert sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


HOLD = """
import sys, time
from hwnas.files import locked
with locked(sys.argv[1], "table"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_lock_keeps_others_out_until_its_owner_ends_or_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "table.json"
    for kill in (False, True):
        owner = subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert owner.stdin and owner.stdout and owner.stdout.readline() == b"held\n"
        with pytest.raises(InputError, match=f"process {owner.pid} is at work"), locked(path, "table"):
            pass
        if kill:
            owner.kill()
        owner.communicate()
        with locked(path, "table"):
            pass
    assert not list(path.parent.iterdir())


def test_a_lock_is_one_processes_whoever_comes_first(tmp_path: Path) -> None:
    """Eight processes add one to a number, each ten times, whenever they have the lock: none is lost."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    program = """
import sys, time
from hwnas.errors import InputError
from hwnas.files import locked
done = 0
while done < 10:
    try:
        with locked(sys.argv[1], "counter"):
            number = int(open(sys.argv[1]).read())
            time.sleep(0.0005)
            open(sys.argv[1], "w").write(str(number + 1))
            done += 1
    except InputError:
        time.sleep(0.001)
"""
    children = [subprocess.Popen([sys.executable, "-c", program, counter]) for _ in range(8)]
    assert [child.wait(60) for child in children] == [0] * 8
    assert counter.read_text() == "80" and list(tmp_path.iterdir()) == [counter]
