"""What happens at a terminal and in a pipe: bars, plain lines, Ctrl-C, a reader that has gone."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest

from tests.cli.command import hwnas
from tests.cli.conftest import DEVICE

# A shell's background jobs, test runners among them, may hand down that SIGINT is ignored: a terminal never does.
MAIN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from hwnas.cli import main; main()"
# A user's shell has no PYTHONUNBUFFERED, and buffers are where output gets stuck.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"} | {
    "OMP_NUM_THREADS": "1", "COLUMNS": "100", "TERM": "xterm-256color"}


def _start(*arguments, **streams):
    return subprocess.Popen([sys.executable, "-c", MAIN, *map(str, arguments)], env=ENVIRONMENT, **streams)


def _read(terminal, until, seconds=60.0):
    """What a terminal shows until a condition on it holds or the program has gone."""
    shown, deadline = b"", time.monotonic() + seconds
    while not until(shown) and time.monotonic() < deadline:
        if not select.select([terminal], [], [], 0.1)[0]:
            continue
        try:
            chunk = os.read(terminal, 65536)
        except OSError:  # EIO: how Linux tells the end of a pseudo-terminal
            chunk = b""
        if not chunk:
            break
        shown += chunk
    return shown


@pytest.fixture(scope="module")
def interrupted(atom, tmp_path_factory):
    """A profile at a terminal, stopped by Ctrl-C after a few sessions: table path, exit code, terminal and stdout."""
    path = tmp_path_factory.mktemp("interrupted") / "table.json"
    journal = path.with_name("table.json.journal")
    ours, theirs = pty.openpty()
    process = _start("profile", "--device", DEVICE, "--space", atom, "--output", path, stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    try:
        shown = _read(ours, lambda text: re.search(rb"[3-8]/10", text) and journal.read_text().count("\n") > 3)
        process.send_signal(signal.SIGINT)
        shown += _read(ours, lambda text: False, 30)
        out, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        os.close(ours)
    return path, process.returncode, shown.decode(), out.decode()


def test_a_terminal_shows_a_bar_with_the_time_left(interrupted):
    _, _, shown, out = interrupted
    assert "━" in shown and re.search(r"[3-8]/10.* \d\d%.* ETA .*\d:\d\d", shown)
    assert re.search("conv 4 k|network k", shown) and "out_channels=" not in shown  # as short as can be told apart
    assert out == ""


def test_ctrl_c_says_what_is_kept(interrupted):
    path, code, shown, _ = interrupted
    assert code == 130
    assert "Interrupted: what was done is kept, and the same command continues." in shown and "Traceback" not in shown
    assert not path.exists()  # no half-made table


def test_what_was_kept_is_continued(interrupted, atom, monkeypatch):
    """And the log of a run that has no terminal is plain lines."""
    path, *_ = interrupted
    kept = [json.loads(line) for line in path.with_name("table.json.journal").read_text().splitlines()[1:]]
    monkeypatch.setattr("hwnas.cli.console._LINE_SECONDS", 0.0)
    done = hwnas("profile", "--device", DEVICE, "--space", atom, "--output", path, "--json")
    assert done.code == 0 and done.json["missing"] == 0, done.err
    # Of every session the anchor's latency is kept; its ratios are not where a crowded machine slowed the anchor down.
    sessions_ms = json.loads(path.read_text())["anchor"]["sessions_ms"]
    assert len(kept) >= 3 and all(row["anchor_ms"] in sessions_ms for row in kept)
    lines = done.err.splitlines()
    assert f"profile: {len(kept) + 1}/10 (" in lines[1] and " s left, " in lines[1]
    assert lines[-1].startswith("profile: ") and " in " in lines[-1]
    assert "\x1b" not in done.err and "━" not in done.err and not any(line.startswith(" ") for line in lines)


@pytest.mark.parametrize("arguments", [
    ("spaces", "spos"), ("spaces", "spos", "--json"), ("predict", "--random", "30000", "--json")])
def test_a_reader_that_has_gone_is_no_error(arguments, table):
    """As in `hwnas spaces spos | head -1`, whoever is first."""
    options = ("--table", table) if arguments[0] == "predict" else ()
    reading, writing = os.pipe()
    process = _start(*arguments, *options, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    if arguments[0] == "predict":
        os.read(reading, 10)
    os.close(reading)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")


def test_an_answer_stays_when_its_reader_has_gone(table):
    reading, writing = os.pipe()
    process = _start("feasible", "--table", table, "--max-latency-ms", "1e-6", "--json", stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    os.close(reading)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3 and err.startswith(b"Error: No network") and err.count(b"\n") == 1


def test_closed_streams_are_survived():
    """Services and cron jobs start programs without them."""
    command = f"{sys.executable} -m hwnas spaces"
    done = subprocess.run(f"{command} spos >&- && {command} spos --json >&- && {command} nope 2>&-", shell=True,
                          capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, b"", b"")
