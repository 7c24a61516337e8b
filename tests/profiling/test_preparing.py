"""Converting ahead with real agents: what is converted, what a crash or a hang costs, and that nothing runs beside a timing."""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from hwnas.errors import UnavailableError
from hwnas.profiling import preparing, rounds
from hwnas.profiling.device import Device, Patience, start_agent
from hwnas.profiling.preparing import prepare_ahead
from hwnas.profiling.profiler import ProfilePlan, plan_blocks, plan_workloads, profile_space
from hwnas.runtimes import RUNTIMES, RuntimeConfig
from hwnas.runtimes.base import Program
from hwnas.runtimes.conversion import Converter, ConvertingRuntime
from hwnas.runtimes.onnx_model import ONNX_FILE, read_onnx
from hwnas.runtimes.onnxruntime import OnnxRuntimeCpu
from tests.profiling.processes import agents, eventually, processes
from tests.profiling.test_device import GUARDING, TIMING, make_space
from tests.runtimes.models import conv_net

ROOT = Path(__file__).parents[2]
CONFIG = RuntimeConfig()
PLAN = ProfilePlan(min_sessions=2, max_sessions=2, fit_networks=1, held_out_networks=1, held_out_sessions=None, timing=TIMING,
                   max_anchor_change=math.inf)
MODELS = {f"width {width}": partial(bytes, conv_net(width=width).SerializeToString()) for width in (3, 4, 5, 6)}
BAD = len(MODELS["width 4"]())
CRASH = "os.kill(os.getpid(), signal.SIGSEGV)"
KILLED = "os.kill(os.getpid(), signal.SIGKILL)"
# So that the first agent has not done everything before the second has started.
UNTIL_OTHERS = """
until = time.monotonic() + 60
log = Path(os.environ["LOG"])
while len({{line.split()[1] for line in log.read_text().splitlines()}}) < {others} and time.monotonic() < until:
    time.sleep(0.01)
"""

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to see what remains"),
    pytest.mark.skipif(not RUNTIMES["onnxruntime-cpu"].availability().available, reason="onnxruntime is not installed"),
]


@dataclass(frozen=True)
class Copying(Converter):
    """Copies in the process that asks, notes in LOG what and who that is, and does WHAT with a model of SIZE bytes."""

    def _run(self, folder):
        content = (folder / "model.onnx").read_bytes()
        with open(os.environ["LOG"], "a") as log:
            log.write(f"{len(content)} {os.getpid()}\n")
        if str(len(content)) == os.environ["SIZE"] or os.environ["SIZE"] == "any":
            exec(os.environ["WHAT"])
        (folder / ONNX_FILE).write_bytes(content)


class CopyingCpu(ConvertingRuntime, OnnxRuntimeCpu):
    """ONNX Runtime with a converter."""

    name = "copying-cpu"

    def prepare(self, model, config):
        onnx_model = read_onnx(model)
        files = Copying(self.name, "1", (), (), (ONNX_FILE,)).convert(onnx_model.content)
        return Program(files, onnx_model.inputs, onnx_model.outputs)


# An agent that knows it.
AGENT = """\
import sys
from hwnas.runtimes import RUNTIMES
from tests.profiling.test_preparing import CopyingCpu
RUNTIMES["copying-cpu"] = CopyingCpu()
from hwnas.profiling.agent import main
sys.exit(main(sys.argv[1:]))
"""


def launch(arguments):
    return start_agent([sys.executable, "-c", GUARDING, AGENT, *arguments])


def prepare(models=MODELS, deadline=math.inf, **arguments):
    with closing(prepare_ahead(CopyingCpu(), CONFIG, models, deadline, launch, **arguments)) as prepared:
        return dict(prepared)


def profile(path, plan=PLAN, progress=None):
    """In which agents that convert know the runtime, too."""
    with pytest.MonkeyPatch.context() as patch, Device(CopyingCpu(), CONFIG, launch) as device:
        patch.setattr(rounds, "prepare_ahead", partial(prepare_ahead, launch=launch))
        return profile_space(make_space(), device, path, plan=plan, progress=progress)


@pytest.fixture(autouse=True)
def mark(tmp_path, monkeypatch):
    """The folder for temporary files of everything that a test starts, which nothing may outlive."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    for name, value in {"TMPDIR": folder, "HWNAS_CACHE_DIR": tmp_path / "cache", "LOG": tmp_path / "log", "SIZE": 0,
                        "WHAT": "pass"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "log").touch()
    yield str(folder)
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert eventually(lambda: not processes(str(folder))), "a process is left"


@pytest.fixture
def converted(tmp_path):
    """How often each size was converted, and by how many processes."""
    def look():
        lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
        return Counter(int(size) for size, _ in lines), len({pid for _, pid in lines})

    return look


def misbehave(monkeypatch, what, size=BAD):
    monkeypatch.setenv("WHAT", "import os, signal, time; " + what)
    monkeypatch.setenv("SIZE", str(size))


def test_every_model_is_converted_once_on_all_processors(converted, monkeypatch):
    processors = len(os.sched_getaffinity(0))
    misbehave(monkeypatch, UNTIL_OTHERS.format(others=min(2, processors)), "any")
    assert prepare() == dict.fromkeys(MODELS)
    sizes, agents_at_work = converted()
    assert sizes == Counter(len(model()) for model in MODELS.values())
    assert min(2, processors) <= agents_at_work <= processors
    assert prepare() == dict.fromkeys(MODELS)
    for model in MODELS.values():
        assert CopyingCpu().prepare(model(), CONFIG).files == {ONNX_FILE: model()}
    assert converted()[0] == sizes  # found in the cache


def test_where_nothing_is_converted_nothing_happens():
    def never(*arguments):
        raise AssertionError

    with closing(prepare_ahead(OnnxRuntimeCpu(), CONFIG, dict.fromkeys(MODELS, never), math.inf, never)) as prepared:
        assert list(prepared) == []


@pytest.mark.parametrize(("what", "reason", "times"), [
    ("from hwnas.errors import InputError; raise InputError('It is ugly.')", "It is ugly.", 2),
    (CRASH, "copying-cpu crashed (SIGSEGV) when it converted the model, twice: ", 2),
    ("time.sleep(100)", "copying-cpu hung when it converted the model, twice: ", 2),
], ids=["refused", "crash", "hang"])
def test_a_model_that_cannot_be_converted_costs_no_other(what, reason, times, converted, monkeypatch):
    misbehave(monkeypatch, what)
    done = prepare(patience=Patience(session_s=3.0))
    assert set(done) == set(MODELS) and [key for key in done if done[key]] == ["width 4"]
    assert done["width 4"].startswith(reason) and converted()[0][BAD] == times


@pytest.mark.parametrize("what", [CRASH, KILLED, "bytearray(1 << 60)"], ids=["crash", "killed", "memory"])
def test_a_crash_that_does_not_come_again_is_no_refusal(tmp_path, converted, monkeypatch, what):
    misbehave(monkeypatch, f"first = not os.path.exists({str(tmp_path / 'seen')!r}); open({str(tmp_path / 'seen')!r}, 'w'); "
                           f"first and {what}")
    assert prepare() == dict.fromkeys(MODELS) and converted()[0][BAD] == 2


@pytest.mark.parametrize("what", [KILLED, "bytearray(1 << 60)"], ids=["killed", "memory"])
def test_a_lack_of_memory_is_no_models_fault(converted, monkeypatch, what):
    misbehave(monkeypatch, what)
    with pytest.raises(UnavailableError, match=r"was killed \(SIGKILL\) when it converted .* memory|MemoryError"):
        prepare()
    assert converted()[0][BAD] == 2


def test_a_second_try_takes_place_after_half_of_the_time_too(converted, monkeypatch):
    monkeypatch.setattr(preparing, "_SHARE", 0.01)
    misbehave(monkeypatch, "time.sleep(100)")
    done = prepare({"width 4": MODELS["width 4"]}, deadline=time.monotonic() + 100, patience=Patience(session_s=3.0))
    assert "hung when it converted the model, twice" in done["width 4"] and converted()[0][BAD] == 2


def test_a_full_disk_is_no_models_fault(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("not a folder")
    with pytest.raises(UnavailableError, match="HWNAS_CACHE_DIR"):
        prepare()


def test_time_is_kept(converted, monkeypatch):
    misbehave(monkeypatch, "time.sleep(100)", "any")
    assert prepare(deadline=time.monotonic()) == {} and converted() == ({}, 0)
    start = time.monotonic()
    assert prepare(deadline=start + 4) == {}  # neither done nor refused: they had no time
    assert time.monotonic() - start < 60


def test_a_profile_converts_everything_before_it_times_anything(tmp_path, converted, mark):
    told = []
    table = profile(tmp_path / "table.json", progress=lambda *told_now: told.append((*told_now, len(agents(mark)))))
    sizes, _ = converted()
    models = {one.model() for one in plan_workloads(make_space(), PLAN, 1, 0)}
    assert all(sizes[len(model)] for model in models) and sum(sizes.values()) == len(models) + 1  # and the anchor
    blocks = len(plan_blocks(make_space(), 1))
    stages = [(key.startswith("preparing"), total) for _, total, key, _ in told]
    assert stages[:blocks] == [(True, blocks)] * blocks  # then a session of each, then what remains
    assert [stage for stage in stages if stage[0]][blocks:] == [(True, 2)] * 2
    assert {len(entry.sessions) for entry in table.entries.values()} == {2}
    assert table.effort.complete and table.effort.timing_minutes < table.effort.minutes
    assert max(alive for _, _, key, alive in told if not key.startswith("preparing")) <= 2  # and its guard


def test_a_profile_leaves_out_what_crashes_the_converter(tmp_path, monkeypatch):
    block = next(one for one in plan_blocks(make_space(), 1) if "kernel=1" in one.key)
    misbehave(monkeypatch, CRASH, len(block.model()))
    table = profile(tmp_path / "table.json")
    assert set(table.refused) == {block.key} and "crashed (SIGSEGV)" in table.refused[block.key]
    assert table.effort.complete and all(record.choices == {"first": "plain"} for record in table.networks)


def test_what_there_was_no_time_for_is_converted_by_agents_too(tmp_path, converted, monkeypatch):
    """Nothing but the anchor is converted in the profiler's own process, which a converter would take with it."""
    monkeypatch.setattr(preparing, "_SHARE", 0.001)  # of ten minutes
    block = next(one for one in plan_blocks(make_space(), 1) if "kernel=1" in one.key)
    misbehave(monkeypatch, f"os.getpid() == {os.getpid()} or {CRASH}", len(block.model()))
    table = profile(tmp_path / "table.json", replace(PLAN, max_minutes=10, held_out_networks=0))
    assert set(table.refused) == {block.key} and table.effort.complete
    assert converted()[0][len(block.model())] == 2
    assert sum(line.endswith(f" {os.getpid()}") for line in (tmp_path / "log").read_text().splitlines()) == 1


def test_a_profile_that_is_killed_while_it_prepares_goes_on_and_counts_the_time(tmp_path, converted, monkeypatch):
    path, journal = tmp_path / "table.json", tmp_path / "table.json.journal"
    misbehave(monkeypatch, "time.sleep(0.7)", "any")
    program = textwrap.dedent(f"""
        from pathlib import Path
        from tests.profiling.test_preparing import profile
        profile(Path({str(path)!r}))
    """)
    child = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    try:
        assert eventually(lambda: journal.exists() and journal.read_bytes().count(b"\n") >= 3, 120)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    rows = [json.loads(line) for line in journal.read_bytes().split(b"\n")[1:-1]]
    spent_s = sum(row["preparing_s"] for row in rows)
    assert len(rows) >= 2 and spent_s >= 0.7
    monkeypatch.setenv("SIZE", "0")
    table = profile(path)
    sizes, _ = converted()
    assert table.effort.complete and table.effort.minutes * 60 > spent_s
    kept = {row["key"] for row in rows}
    assert all(sizes[len(block.model())] == 1 for block in plan_blocks(make_space(), 1) if block.key in kept)
