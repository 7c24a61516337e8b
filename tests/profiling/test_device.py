"""Agents on this machine, which crash, hang, lie, and are killed; the operating system says whether anything remains of them."""

import gc
import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from hwnas.errors import InputError, UnavailableError
from hwnas.ir.blocks import ConvBlock, Head, Stem
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.ir.trellis import Trellis
from hwnas.latency.compare import table_warnings
from hwnas.latency.refusals import network_key
from hwnas.latency.table import load_table
from hwnas.profiling.anchor import anchor_model
from hwnas.profiling.device import Anchor, Device, Patience, TimeOverError, launch_here, list_runtimes, open_device, start_agent
from hwnas.profiling.environment import read_processor
from hwnas.profiling.profiler import ProfilePlan, plan_blocks, plan_networks, profile_space
from hwnas.profiling.protocol import GREETING, READY
from hwnas.profiling.rounds import RoundsPlan, measure_rounds, open_journal, read_preparing_s
from hwnas.profiling.timing import TimingPlan
from hwnas.runtimes import RUNTIMES, RuntimeConfig, load_converter, load_runtime
from hwnas.runtimes.base import Availability
from hwnas.runtimes.onnxruntime import OnnxRuntimeCpu
from tests.profiling.processes import agents, eventually, kill, processes
from tests.runtimes.models import build_model, conv_net

RUNTIME = "onnxruntime-cpu"
ROOT = Path(__file__).parents[2]
CONFIG = RuntimeConfig()
TIMING = TimingPlan(sample_ms=0.05, min_pairs=3, max_pairs=3, max_seconds=0.05, warmup_pairs=1, max_warmup_seconds=0.001)
LONG = TimingPlan(sample_ms=1, min_pairs=10**6, max_pairs=10**6, max_seconds=2.0, warmup_pairs=1, max_warmup_seconds=0.001)
MODEL = conv_net().SerializeToString()
BAD = conv_net(width=13).SerializeToString()  # to misbehaving runtimes

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc to see what remains"),
    pytest.mark.skipif(not RUNTIMES[RUNTIME].availability().available, reason=str(RUNTIMES[RUNTIME].availability().reason)),
]

# An agent that does something else when it loads a program of SIZE bytes, for TIMES times, which it notes in SEEN.
MISBEHAVING = f"""\
import ctypes, os, sys, time
from hwnas.runtimes import RUNTIMES
kind = type(RUNTIMES["{RUNTIME}"])
load = kind.load
def misbehaving(self, program, config):
    if len(program.files["model.onnx"]) == int(os.environ["SIZE"]):
        seen = os.path.getsize(os.environ["SEEN"])
        with open(os.environ["SEEN"], "a") as file:
            file.write("x")
        if seen < int(os.environ["TIMES"]):
            %s
    return load(self, program, config)
kind.load = misbehaving
from hwnas.profiling.agent import main
sys.exit(main(sys.argv[1:]))
"""
SEGFAULT = "ctypes.string_at(0)"
# The guard of another program than the agent.
GUARDING = """\
import sys
import hwnas.profiling.guard as guarding
guarding.module_command = lambda module: [sys.executable, "-c", sys.argv[1]]
sys.exit(guarding.main(sys.argv[2:]))
"""
KILLED = "os.kill(os.getpid(), 9)"  # as by a system that is short of memory
# An agent of a runtime on an accelerator, whose clock falls while it works.
CLOCKED = f"""\
import itertools, sys
from hwnas.runtimes import RUNTIMES
clocks_mhz = itertools.cycle([1980, 1755])
type(RUNTIMES["{RUNTIME}"]).clock_mhz = lambda self: next(clocks_mhz)
from hwnas.profiling.agent import main
sys.exit(main(sys.argv[1:]))
"""
HANG = "ctypes.PyDLL(None).sleep(1000)"  # in native code, and without letting any other thread of Python run


def guarded(program):
    """Starts a program as an agent is started."""
    return lambda arguments: start_agent([sys.executable, "-c", GUARDING, program, *arguments])


def make_space():
    return SearchSpace("small", (3, 8, 8), (
        Fixed("stem", Stem(4)), Decision("first", {"plain": ConvBlock(4), "pointwise": ConvBlock(4, 1)}), Fixed("head", Head(4))))


def make_larger_space():
    """Eight networks, of which no two are of one size; nor are the blocks."""
    return SearchSpace("larger", (3, 8, 8), (
        Fixed("stem", Stem(4)), *(Decision(f"layer{width}", {"large": ConvBlock(width), "small": ConvBlock(width, 1)})
                                  for width in (5, 9, 17)), Fixed("head", Head(4))))


def folders(place):
    """What hwnas has left there; onnxruntime has a file of its own wherever it is imported."""
    return [name for name in os.listdir(place) if name.startswith("hwnas")]


@pytest.fixture(autouse=True)
def mark(tmp_path, monkeypatch):
    """The folder for temporary files of everything that a test starts, which nothing may outlive."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield str(folder)
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert eventually(lambda: not processes(str(folder))), "a process is left"
    assert eventually(lambda: not folders(folder)), folders(folder)


@pytest.fixture
def device():
    with open_device(RUNTIME, CONFIG) as opened:
        yield opened


def test_clocks_are_read_before_and_after_timing_and_kept(device, tmp_path):
    path, rows = tmp_path / "table.json", []
    journal = path.with_name("table.json.journal")
    plan = ProfilePlan(min_sessions=1, max_sessions=1, fit_networks=1, fit_sessions=1, held_out_networks=1, held_out_sessions=1,
                       max_anchor_change=1e9, timing=TIMING)

    def note(done, total, key):
        if not key.startswith("preparing"):
            rows.append(json.loads(journal.read_text().splitlines()[-1])["clocks_mhz"])

    with Device(load_runtime(RUNTIME), CONFIG, guarded(CLOCKED)) as clocked:
        assert clocked.measure(MODEL, TIMING).clocks_mhz == (1980, 1755)
        table = profile_space(make_space(), clocked, path, plan=plan, progress=note)
        assert rows == [[1980, 1755]] * 6 and table.anchor.clocks_mhz == 6 * (1980, 1755) and load_table(path) == table
        effort = table.effort.model_copy(update={"planned_sessions": 7})  # as a table whose journal was lost before its end
        replace(table, effort=effort, anchor=table.anchor.model_copy(update={"clocks_mhz": (1980, 1755, 1755)})).save(path)
        assert profile_space(make_space(), clocked, path, plan=plan).anchor.clocks_mhz == 6 * (1755,)
    assert device.measure(MODEL, TIMING).clocks_mhz == ()  # a CPU


@pytest.fixture
def misbehaving(tmp_path, monkeypatch):
    """Makes devices that do something when it loads a model, and the file that has a letter for each time."""
    seen = tmp_path / "seen"
    seen.touch()

    def make(what, model=BAD, times=99, **patience):
        for name, value in (("SEEN", seen), ("TIMES", times), ("SIZE", len(model))):
            monkeypatch.setenv(name, str(value))
        return Device(load_runtime(RUNTIME), CONFIG, guarded(MISBEHAVING % what), patience=Patience(**patience))

    return make, seen


def agent_of(device, mark):
    """The only agent's process, which runs if need be."""
    device.environment(1)
    (pid,) = agents(mark)
    return pid


def test_a_session_and_its_environment_are_what_they_say(device):
    environment = device.environment(2)
    assert environment["device"] == read_processor().name and environment["runtime"] == RUNTIME and environment["batch_size"] == 2
    assert environment["runtime_version"] == load_runtime(RUNTIME).availability().version
    assert environment["affinity"] == str(max(os.sched_getaffinity(0)))
    session = device.measure(MODEL, TIMING)
    assert len(session.ratios) == 3 and all(0 < ratio < math.inf for ratio in session.ratios) and session.anchor_ms > 0
    assert session.total_s > session.timing_s > 0


def test_what_is_measured_is_the_model(device):
    anchor = [ratio for _ in range(3) for ratio in device.measure(anchor_model(), TIMING).ratios]
    large = [ratio for _ in range(3) for ratio in device.measure(conv_net(width=64, side=64).SerializeToString(), TIMING).ratios]
    small = [ratio for _ in range(3) for ratio in device.measure(conv_net(width=2, side=4).SerializeToString(), TIMING).ratios]
    assert 0.5 < np.median(anchor) < 2 and np.median(small) < np.median(anchor) < np.median(large)


def test_another_anchor_is_another_yardstick():
    with Device(load_runtime(RUNTIME), CONFIG, launch_here, anchor=Anchor(MODEL, "its hash")) as device:
        assert device.environment(1)["anchor"] == "its hash"
        assert 0.3 < np.median(device.measure(MODEL, TIMING).ratios) < 3
        assert np.median(device.measure(anchor_model(), TIMING).ratios) > 3


def test_a_device_keeps_its_agent_until_it_is_renewed(device, mark):
    first = agent_of(device, mark)
    device.measure(MODEL, TIMING)
    assert agents(mark) == [first]
    device.renew()
    assert processes(mark) == [] and folders(mark) == []
    assert agent_of(device, mark) != first


def test_nothing_is_left_open(device):
    def opened():
        gc.collect()
        return sorted(os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")
                      if os.path.lexists(f"/proc/self/fd/{name}"))

    before = opened()
    for _ in range(2):
        device.measure(MODEL, TIMING)
        device.renew()
    assert len(opened()) == len(before), (before, opened())
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    states = {pid: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] for pid in children}
    assert "Z" not in states.values(), states


def test_a_model_that_crashes_the_runtime_every_time_is_refused_by_the_signals_name(misbehaving, tmp_path):
    make, seen = misbehaving
    with make(SEGFAULT) as device:
        with pytest.raises(InputError, match=r"^onnxruntime-cpu crashed \(SIGSEGV\) on the model, 2 times: .*\.$"):
            device.measure(BAD, TIMING)
        assert seen.read_text() == "xx"
        assert device.measure(MODEL, TIMING).ratios


def test_a_model_that_crashes_the_runtime_once_is_measured(misbehaving):
    make, seen = misbehaving
    with make(SEGFAULT, times=1) as device:
        assert len(device.measure(BAD, TIMING).ratios) == 3
    assert seen.read_text() == "xx"


@pytest.mark.parametrize("what", ["bytearray(1 << 60)", "import no_such_package"], ids=["memory", "package"])
def test_what_a_machine_lacks_is_no_models_fault(misbehaving, what):
    make, seen = misbehaving
    with make(what, times=1) as device:
        with pytest.raises(UnavailableError, match=r"lacks memory or a package .*(MemoryError|ModuleNotFoundError)") as caught:
            device.measure(BAD, TIMING)
        assert caught.value.exit_code == 5
        assert device.measure(BAD, TIMING).ratios and seen.read_text() == "xx"


FAILING = "from hwnas.runtimes.base import Bound; done = load(self, program, config); "


@pytest.mark.parametrize("what", [
    "raise RuntimeError('it is worn out')",
    FAILING + "done.bind = lambda inputs: 1 / 0; return done",
    FAILING + "done.bind = lambda inputs: Bound(lambda: 1 / 0, dict); return done"], ids=["load", "bind", "run"])
def test_an_anchor_that_fails_is_no_models_fault(misbehaving, what):
    make, seen = misbehaving
    with make(what, anchor_model(), times=1) as device:
        with pytest.raises(UnavailableError, match=r"^The anchor must run .*(worn out|ZeroDivisionError)"):
            device.measure(MODEL, TIMING)
        assert device.measure(MODEL, TIMING).ratios and seen.read_text() == "xx"


@pytest.mark.parametrize("times, refused", [(2, False), (99, True)], ids=["once", "always"])
def test_a_model_on_which_the_agent_is_killed_has_another_chance(times, refused, misbehaving, tmp_path):
    """In the next round, when there may be more memory; else it is too large for this machine, on which the others run."""
    make, seen = misbehaving
    space = make_space()
    plan = ProfilePlan(min_sessions=1, max_sessions=1, fit_networks=1, fit_sessions=1, held_out_networks=0, timing=TIMING)
    option = space.steps[1].edges[0].workload
    (large,) = [one for one in plan_blocks(space, 1) if one.key == option]
    with make(KILLED, large.model(), times=times) as device:
        table = profile_space(space, device, tmp_path / "table.json", plan=plan)
    assert seen.read_text() == ("xxxx" if refused else "xxx")  # an agent that is killed is started once more
    others = {one.key for one in plan_blocks(space, 1)} - {option}
    assert set(table.entries) == others | (set() if refused else {option})
    assert set(table.refused) == ({option} if refused else set())
    assert all("killed (SIGKILL)" in why and "memory" in why for why in table.refused.values())


def test_where_several_models_in_a_row_lack_memory_it_is_the_machine(misbehaving, tmp_path):
    make, seen = misbehaving
    journal, refused, models = tmp_path / "journal", {}, dict.fromkeys("abcd", lambda: BAD)
    with make(KILLED) as device:
        measured = open_journal(journal, {"environment": device.environment(1)})
        with pytest.raises(UnavailableError, match=r"^onnxruntime-cpu was killed \(SIGKILL\) on the model, .* memory .*\.$"):
            measure_rounds(models, measured, journal, device, RoundsPlan(timing=TIMING), refused=refused)
    assert not refused and not measured and seen.read_text() == 3 * "xx"
    assert len(journal.read_text().splitlines()) == 1


def test_a_model_on_which_the_agent_is_killed_once_is_measured(misbehaving):
    make, seen = misbehaving
    with make(KILLED, times=1) as device:
        assert len(device.measure(BAD, TIMING).ratios) == 3
    assert seen.read_text() == "xx"


def test_when_time_is_over_a_model_that_hangs_is_given_up_and_not_refused(misbehaving, tmp_path, mark):
    make, seen = misbehaving
    journal, refused, models = tmp_path / "journal", {}, {"good": lambda: MODEL, "bad": lambda: BAD}
    seed = next(seed for seed in range(99) if _shuffled(models, seed) == ["good", "bad"])
    with make(HANG, session_s=20.0) as device:
        measured = open_journal(journal, {"environment": device.environment(1)})
        measure_rounds(models, measured, journal, device, RoundsPlan(timing=TIMING, max_minutes=6 / 60), seed=seed,
                       refused=refused)
        assert processes(mark) == []
    assert not refused and set(measured) == {"good"} and seen.read_text() == "x"
    assert [json.loads(line).get("key") for line in journal.read_text().splitlines()] == [None, "good"]


def _shuffled(keys, seed):
    """The order of the first round."""
    found = list(keys)
    random.Random(f"{seed}/0").shuffle(found)
    return found


def _order(blocks):
    keys = {block.key: block for block in blocks}
    return [keys[key] for key in _shuffled(keys, 0)]


def test_when_time_is_over_nobody_waits_for_a_device_to_come_back(mark):
    programs = iter(["", "import time; time.sleep(100)"])

    def launch(arguments):
        program = next(programs)
        return guarded(program)(arguments) if program else launch_here(arguments)

    with Device(load_runtime(RUNTIME), CONFIG, launch, patience=Patience(start_s=20.0)) as device:
        device.measure(MODEL, TIMING)
        device.renew()
        with pytest.raises(TimeOverError):
            device.measure(MODEL, TIMING, time.monotonic() + 1.0)
    assert next(programs, None) is None


def test_a_runtime_may_print_and_read_what_it_likes(misbehaving):
    make, seen = misbehaving
    with make("os.write(1, b'noise\\n' * 20000), os.write(2, b'noise\\n' * 20000), os.read(0, 10)", attempts=1) as device:
        assert len(device.measure(BAD, TIMING).ratios) == 3 and seen.read_text() == "x"


def test_a_model_that_hangs_the_runtime_is_refused_and_its_agent_killed(misbehaving, mark):
    make, seen = misbehaving
    with make(HANG, session_s=1.5) as device:
        with pytest.raises(InputError, match=r"^onnxruntime-cpu hung on the model, 2 times: "):
            device.measure(BAD, TIMING)
        assert seen.read_text() == "xx" and processes(mark) == []
        assert device.measure(MODEL, TIMING).ratios


def test_the_profiler_leaves_out_a_block_that_crashes_the_runtime(misbehaving, tmp_path):
    make, seen = misbehaving
    space = make_space()
    plan = ProfilePlan(min_sessions=1, max_sessions=1, fit_networks=1, fit_sessions=1, held_out_networks=0, timing=TIMING)
    block = next(one for one in plan_blocks(space, 1) if "kernel=1" in one.key)
    with make(SEGFAULT, block.model()) as device:
        profile_space(space, device, tmp_path / "table.json", plan=plan)
    table = load_table(tmp_path / "table.json")
    assert set(table.refused) == {block.key} and "crashed (SIGSEGV)" in table.refused[block.key]
    assert set(table.entries) == {one.key for one in plan_blocks(space, 1)} - {block.key}
    assert [record.choices for record in table.networks] == [{"first": "plain"}] and seen.read_text() == "xx"


LARGER_PLAN = ProfilePlan(min_sessions=1, max_sessions=1, fit_networks=3, fit_sessions=1, held_out_networks=2,
                          held_out_sessions=1, timing=TIMING, max_anchor_change=math.inf)


def test_the_profiler_replaces_a_network_that_crashes_the_runtime_though_its_blocks_run(misbehaving, tmp_path):
    """Interrupted as soon as it is known, and continued: it is not tried again."""
    make, seen = misbehaving
    space, path = make_larger_space(), tmp_path / "table.json"
    bad = plan_networks(space, LARGER_PLAN, 1, 0)[1]
    every = [*plan_blocks(space, 1), *plan_networks(space, ProfilePlan(fit_networks=space.size), 1, 0)]
    assert [len(one.model()) for one in every].count(len(bad.model())) == 1

    def interrupt(done, total, key):
        if seen.read_text():
            raise KeyboardInterrupt

    with make(SEGFAULT, bad.model()) as device:
        with pytest.raises(KeyboardInterrupt):
            profile_space(space, device, path, plan=LARGER_PLAN, progress=interrupt)
        profile_space(space, device, path, plan=LARGER_PLAN)
    table = load_table(path)
    assert seen.read_text() == "xx" and list(tmp_path.glob("table.json*")) == [path]
    assert set(table.refused) == {bad.key} and "crashed (SIGSEGV)" in table.refused[bad.key]
    assert set(table.entries) == {one.key for one in plan_blocks(space, 1)} and table.effort.complete
    measured = {network_key(space.architecture(record.choices)): record.role for record in table.networks}
    assert sorted(measured.values()) == ["fit"] * 3 + ["held_out"] * 2 and bad.key not in measured
    assert Trellis(space, table).count() == space.size  # none of its options is left out
    assert [one for one in table_warnings(table) if "refuses 1 whole network(s)" in one and "crashed (SIGSEGV)" in one]


def test_a_block_that_crashes_the_runtime_in_a_later_round_takes_its_networks_with_it(misbehaving, tmp_path):
    """They were measured in the round before; others take their place at once."""
    make, seen = misbehaving
    space = make_larger_space()
    plan = replace(LARGER_PLAN, min_sessions=2, max_sessions=2, held_out_networks=1)
    block = next(one for one in plan_blocks(space, 1) if "out_channels=9," in one.key and "kernel=1" in one.key)
    with make(f"seen and {SEGFAULT}", block.model()) as device:
        table = profile_space(space, device, tmp_path / "table.json", plan=plan)
    assert seen.read_text() == "xxx" and set(table.refused) == {block.key} and table.effort.complete
    assert len(table.networks) == 4 and all(record.choices["layer9"] == "large" for record in table.networks)
    assert table_warnings(table)[0].startswith("Only 1 networks judge")


def test_the_time_that_a_refused_model_takes_is_counted(misbehaving, tmp_path):
    make, _ = misbehaving
    journal, refused = tmp_path / "journal", {}
    with make("time.sleep(0.5); " + SEGFAULT) as device:
        measured = open_journal(journal, {"environment": device.environment(1)})
        measure_rounds({"bad": lambda: BAD}, measured, journal, device, RoundsPlan(timing=TIMING), refused=refused)
    assert set(refused) == {"bad"} and not measured and read_preparing_s(journal) >= 1  # it was tried twice


def test_an_agent_that_is_killed_in_the_middle_is_replaced(device, mark):
    first = agent_of(device, mark)
    killer = threading.Timer(0.2, kill, (first, signal.SIGSEGV))
    killer.start()
    assert device.measure(MODEL, LONG).ratios
    killer.join()
    assert agents(mark) and first not in agents(mark)


def test_an_agent_whose_guard_is_killed_goes_on_and_ends_with_the_device(device, mark):
    first = agent_of(device, mark)
    (guard,) = set(processes(mark)) - {first}
    kill(guard)
    assert device.measure(MODEL, TIMING).ratios and agents(mark) == [first]
    device.close()
    assert eventually(lambda: not processes(mark))
    for name in folders(mark):  # nobody was left to remove it
        shutil.rmtree(Path(mark, name))


def test_an_agent_that_does_not_read_does_not_hold_the_profiler(mark):
    with Device(load_runtime(RUNTIME), CONFIG, launch_here, patience=Patience(session_s=2.0)) as device:
        first = agent_of(device, mark)
        kill(first, signal.SIGSTOP)
        assert device.measure(conv_net(width=128, depth=3).SerializeToString(), TIMING).ratios  # by another
        assert first not in processes(mark)


@pytest.mark.parametrize("what", ["", HANG], ids=["idle", "hanging"])
def test_an_agent_does_not_outlive_a_profiler_that_is_killed(what, tmp_path, monkeypatch, mark):
    for name, value in (("SEEN", tmp_path / "seen"), ("TIMES", 99), ("SIZE", len(BAD))):
        monkeypatch.setenv(name, str(value))
    (tmp_path / "seen").touch()
    program = textwrap.dedent(f"""
        import sys, time
        from tests.profiling.test_device import BAD, CONFIG, MISBEHAVING, RUNTIME, TIMING, guarded
        from hwnas.profiling.device import Device
        from hwnas.runtimes import load_runtime
        with Device(load_runtime(RUNTIME), CONFIG, guarded(MISBEHAVING % {what or "pass"!r})) as device:
            device.measure(BAD, TIMING)
            time.sleep(100)
        """)
    profiler = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    try:
        assert eventually(lambda: (tmp_path / "seen").read_text() and agents(mark), 60)
        time.sleep(0.3)
        assert len(folders(mark)) == 1
    finally:
        profiler.kill()
        profiler.wait()


def test_ctrl_c_ends_what_is_measured_and_nothing_else(mark):
    program = textwrap.dedent("""
        from tests.profiling.test_device import CONFIG, LONG, MODEL, RUNTIME, TIMING
        from hwnas.profiling.device import open_device
        with open_device(RUNTIME, CONFIG) as device:
            device.environment(1)
            print("measuring", flush=True)
            try:
                device.measure(MODEL, LONG)
            except KeyboardInterrupt:
                print("interrupted", len(device.measure(MODEL, TIMING).ratios))
        """)
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True,
                          start_new_session=True) as profiler:
        assert profiler.stdout.readline() == "measuring\n"
        time.sleep(0.3)
        os.killpg(profiler.pid, signal.SIGINT)
        assert profiler.stdout.read() == "interrupted 3\n"
    assert profiler.returncode == 0


def test_a_model_that_fails_when_it_runs_is_refused_and_the_agent_goes_on(device, mark):
    first = agent_of(device, mark)
    weights = [numpy_helper.from_array(np.zeros((2, 3), np.float32), "table"), numpy_helper.from_array(np.array([700]), "far")]
    nodes = [helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64), helper.make_node("Add", ["i", "far"], ["where"]),
             helper.make_node("Gather", ["table", "where"], ["y"])]
    with pytest.raises(InputError, match=r"^onnxruntime-cpu cannot run the model .*: check it"):
        device.measure(build_model(nodes, {"x": [1]}, {"y": [1, 3]}, weights).SerializeToString(), TIMING)
    with pytest.raises(InputError, match="cannot compile the model"):
        device.measure(build_model([helper.make_node("Nonsense", ["x"], ["y"])], {"x": [1]}, {"y": [1]}, []).SerializeToString(),
                       TIMING)
    assert device.measure(MODEL, TIMING).ratios and agents(mark) == [first]


def test_what_is_wrong_from_the_start_is_told_at_once():
    with open_device(RUNTIME, RuntimeConfig(precision="fp8")) as device, pytest.raises(InputError, match="'fp8'"):
        device.environment(1)
    with open_device(RUNTIME, CONFIG, cpus=[4095]) as device, pytest.raises(InputError, match=r"\[4095\].*--cpus\.$"):
        device.environment(1)
    for opener in (open_device, lambda name, config: load_converter(name)):
        with pytest.raises(InputError, match="There is no runtime 'abacus'"):
            opener("abacus", CONFIG)
    with pytest.raises(UnavailableError, match="no-such-program is needed but does not start"):
        start_agent(["no-such-program"])


def test_processors_can_be_chosen():
    cpu = min(os.sched_getaffinity(0))
    with open_device(RUNTIME, CONFIG, cpus=[cpu]) as device:
        assert device.environment(1)["affinity"] == str(cpu)


@pytest.mark.parametrize("program, words", [
    ("import sys; print('what a pity', file=sys.stderr); sys.exit(3)", "ended with status 3: what a pity"),
    ("import os; os.abort()", "crashed (SIGABRT)"),
    ("pass", "failed (the connection ended)"),
    ("print('hello\\n' * 5000, flush=True)", "the agent's greeting did not come"),
    ("import time; time.sleep(100)", "hung"),
    (f"print('noise\\n{GREETING}{READY}\\nnoise', flush=True); input()", "what came is no message"),
], ids=["status", "signal", "nothing", "noise", "silence", "nonsense"])
def test_an_agent_that_does_not_start_is_no_models_fault(program, words):
    launched = []

    def launch(arguments):
        launched.append(arguments)
        return guarded(program)(arguments)

    patience = Patience(start_s=0.5 if words == "hung" else 60)
    with Device(load_runtime(RUNTIME), CONFIG, launch, patience=patience) as device:
        for ask in (lambda: device.environment(1), lambda: device.measure(MODEL, TIMING)):
            with pytest.raises(UnavailableError, match=r"^onnxruntime-cpu cannot be reached \(.*\): .*\.$") as error:
                ask()
            assert words in str(error.value)
    assert launched == [[RUNTIME, "1", "fp32"]] * 2  # it was never there, so that nobody waits for it to come back


GOOD = {"session": {"ratios": [1.0], "anchor_ms": 1.0, "timing_s": 1.0}, "files": {}}
LIES = ["", "no JSON", "[]", "null", "{}", '{"files": {}}', '{"files": {"a": -1}}', '{"files": {"a": 10000000000000}}',
        *(json.dumps(GOOD | change) for change in (
            {"error": "a text"}, {"error": {}}, {"error": {"kind": "SystemExit", "message": "?"}},
            {"error": {"kind": [], "message": ""}}, {"session": 7}, {"session": []}, {"session": {"ratios": [1.0]}},
            *({"session": GOOD["session"] | {"ratios": ratios}}
              for ratios in ([], [0], [-1], [math.nan], [math.inf], ["x"], [10**400], 7)),
            *({"session": GOOD["session"] | {"clocks_mhz": value}} for value in ([0], [math.inf], ["x"], 1980, None)),
            *({"session": GOOD["session"] | {"anchor_ms": value}} for value in (0, math.nan, None))))]


def test_an_agent_that_lies_is_a_crash_at_worst(tmp_path):
    """Each agent answers its first messages properly, then takes the next lie."""
    lies = tmp_path / "lies"
    program = textwrap.dedent(f"""
        import json, sys
        def message():
            for size in json.loads(sys.stdin.buffer.readline())["files"].values():
                sys.stdin.buffer.read(size)
        print("{GREETING}{READY}", '{{"files": {{}}}}', sep="\\n", flush=True)
        message()
        print('{{"files": {{}}}}', flush=True)
        message()
        print(open({str(lies)!r}).read(), flush=True)
        sys.stdin.buffer.read()
        """)

    def launch(arguments):
        return start_agent([sys.executable, "-S", "-c", program])  # its guard would only take time

    for lie in LIES:
        lies.write_text(lie)
        with (Device(load_runtime(RUNTIME), CONFIG, launch, patience=Patience(attempts=1)) as device,
              pytest.raises(InputError, match=r"^onnxruntime-cpu failed .* on the model, 1 times: ")):
            device.measure(MODEL, TIMING)
    lies.write_text(json.dumps(GOOD))
    with Device(load_runtime(RUNTIME), CONFIG, launch) as device:
        assert device.measure(MODEL, TIMING).ratios == (1.0,)


def test_a_device_that_is_another_one_after_a_restart_is_refused():
    threads = itertools.chain([1, 1], itertools.repeat(2))

    def launch(arguments):
        return launch_here([arguments[0], str(next(threads)), *arguments[2:]])

    with Device(load_runtime(RUNTIME), CONFIG, launch) as device:
        device.environment(1)
        device.renew()  # nothing was measured: the agent is as good as a fresh one
        assert device.measure(MODEL, TIMING).ratios
        device.renew()
        assert device.measure(MODEL, TIMING).ratios
        device.renew()
        with pytest.raises(UnavailableError, match=r"must stay the same .* threads was 1 and is 2"):
            device.measure(MODEL, TIMING)


class Converting(OnnxRuntimeCpu):
    """ONNX Runtime as one knows it on the machine that prepares."""

    def __init__(self, found):
        self.found = found

    def can_prepare(self):
        return self.found


def test_a_runtime_is_measured_elsewhere_if_it_is_loaded_there_and_prepared_here(monkeypatch):
    for name in [name for name in RUNTIMES if name != RUNTIME]:
        monkeypatch.delitem(RUNTIMES, name)
    version = RUNTIMES[RUNTIME].can_load().version
    assert list_runtimes(launch_here, "there") == {RUNTIME: Availability(True, version)}
    monkeypatch.setitem(RUNTIMES, RUNTIME, Converting(Availability(True, "pnnx 7")))
    assert list_runtimes(launch_here, "there") == {RUNTIME: Availability(True, f"{version} (pnnx 7)")}
    monkeypatch.setitem(RUNTIMES, RUNTIME, Converting(Availability(False, reason="pnnx is not installed; run: pip install pnnx")))
    found = list_runtimes(launch_here, "there")[RUNTIME]
    assert not found.available and found.version is None
    assert found.reason == "models for it cannot be prepared on this machine: pnnx is not installed; run: pip install pnnx"


@pytest.mark.parametrize("program, words", [
    ("import sys; print('what a pity', file=sys.stderr); sys.exit(3)", "its agent ended with status 3: what a pity"),
    ("import time; time.sleep(100)", "its agent hung"),
], ids=["status", "silence"])
def test_a_machine_without_an_agent_has_no_runtimes(program, words):
    with pytest.raises(UnavailableError, match=rf"^board cannot be reached \({words}\): .*\.$"):
        list_runtimes(guarded(program), "board", Patience(start_s=0.5 if "hung" in words else 60))


# An agent that three runtimes take with them when it is asked for them.
ASKED = f"""\
import ctypes, os, sys
from hwnas.runtimes import RUNTIMES
from hwnas.runtimes.base import Availability
what = {{"mnn-cpu": lambda: {SEGFAULT}, "ncnn-cpu": lambda: sys.exit(3), "torch-cpu": lambda: os.kill(os.getpid(), 9)}}
for name, runtime in RUNTIMES.items():
    if name != "{RUNTIME}":
        type(runtime).can_load = lambda self: what.get(self.name, lambda: Availability(False, reason="it is not asked for"))()
from hwnas.profiling.agent import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_runtime_that_crashes_when_it_is_imported_does_not_take_the_list_with_it():
    found = list_runtimes(guarded(ASKED), "board")
    assert found.pop(RUNTIME).available and set(found) == set(RUNTIMES) - {RUNTIME}
    assert found.pop("mnn-cpu").reason == "it crashed (SIGSEGV) when it was imported; reinstall it"
    assert found.pop("ncnn-cpu").reason == "it ended with status 3 when it was imported; reinstall it"
    assert found.pop("torch-cpu").reason == "it was killed (SIGKILL) when it was imported; free some memory there"
    assert set(found.values()) == {Availability(False, reason="it is not asked for")}


def test_an_agent_is_found_where_the_profiler_is_and_not_in_the_current_folder(tmp_path, monkeypatch):
    for name in ("hwnas", "numpy", "json", "onnxruntime"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong one')")
    monkeypatch.chdir(tmp_path)
    with open_device(RUNTIME, CONFIG) as device:
        assert device.measure(MODEL, TIMING).ratios
