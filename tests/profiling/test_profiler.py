"""The profiler on a real runtime: what it measures, what it refuses, and that a kill costs at most one session."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.errors import InputError
from hwnas.ir.blocks import ConvBlock, Head, Identity, MBConv, Stem
from hwnas.ir.costs import MacsCost
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.ir.trellis import Trellis
from hwnas.latency.compare import table_warnings
from hwnas.latency.estimates import estimate_blocks
from hwnas.latency.refusals import network_key
from hwnas.latency.summary import refused_networks
from hwnas.latency.table import NetworkRecord, SittingRecord, load_table
from hwnas.profiling.anchor import anchor_model
from hwnas.profiling.device import open_device
from hwnas.profiling.profiler import (
    ProfilePlan,
    default_table_path,
    plan_blocks,
    plan_networks,
    plan_workloads,
    profile_space,
    spread_networks,
)
from hwnas.profiling.timing import TimingPlan
from hwnas.runtimes import RuntimeConfig
from hwnas.spaces.load import load_space
from tests.profiling.open_devices import device_of

ROOT = Path(__file__).parents[2]
CONFIG = RuntimeConfig()
TIMING = TimingPlan(sample_ms=0.05, min_pairs=3, max_pairs=3, max_seconds=0.05, warmup_pairs=1, max_warmup_seconds=0.001)
PLAN = ProfilePlan(min_sessions=1, max_sessions=1, fit_networks=3, fit_sessions=None, held_out_networks=2, held_out_sessions=None,
                   timing=TIMING, max_anchor_change=math.inf)
BLOCKS = 6  # distinct ones of `make_space`, its identity left out
NETWORKS = 5  # of PLAN


def make_space(name="small", width=8):
    """Eight networks; the plain convolution of `second` and of `third` is one and the same."""
    return SearchSpace(name, (3, 16, 16), (
        Fixed("stem", Stem(4)),
        Decision("first", {"mb": MBConv(width, 3, 2, 2), "plain": ConvBlock(width, 3, 2)}),
        Decision("second", {"conv": ConvBlock(width), "skip": Identity()}),
        Decision("third", {"conv": ConvBlock(width), "pointwise": ConvBlock(width, 1)}),
        Fixed("head", Head(4)),
    ))


def make_large_space(decisions=8, options=5):
    """MACs rise with the kernel, so that networks differ widely."""
    return SearchSpace("large", (3, 8, 8), (
        Fixed("stem", Stem(4)),
        *(Decision(f"layer{index}", {f"k{kernel}": ConvBlock(4, kernel) for kernel in range(1, 2 * options, 2)})
          for index in range(decisions)),
        Fixed("head", Head(4)),
    ))


SPACE = make_space()


class Told(list):
    """Collects what the profiler reports."""

    def __call__(self, done, total, key):
        self.append((done, total, key))

    @property
    def keys(self):
        return [key for _, _, key in self]


def profile(path, space=SPACE, plan=PLAN, config=CONFIG, device="onnxruntime-cpu", **arguments):
    told = Told()
    return profile_space(space, device_of(device, config), path, plan=plan, progress=told, **arguments), told


def journal_of(path):
    return path.with_name(path.name + ".journal")


def sessions_of(journal):
    """Workload to its sessions' ratios, as they stand in the whole lines of a journal."""
    content = journal.read_bytes()
    found = {}
    for line in content[:content.rfind(b"\n") + 1].splitlines()[1:]:
        row = json.loads(line)
        found.setdefault(row["key"], []).append(tuple(row["ratios"]))
    return found


def start_journal(path, plan=PLAN, **arguments):
    """A journal that nothing has been measured for."""
    with pytest.raises(InputError, match="time was over"):
        profile(path, plan=replace(plan, max_minutes=0), **arguments)
    return journal_of(path)


def key_of(choices):
    return network_key(SPACE.architecture(choices))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A whole table and what was told while it was measured."""
    path = tmp_path_factory.mktemp("profile") / "deep" / "table.json"
    table, told = profile(path)
    return path, table, told


@pytest.fixture
def table_path(finished, tmp_path):
    path = tmp_path / "table.json"
    path.write_bytes(finished[0].read_bytes())
    return path


# What is measured


def test_every_block_is_measured_once(finished):
    _, table, told = finished
    blocks = {edge.workload for step in SPACE.steps for edge in step.edges if edge.block.kind != "identity"}
    assert set(table.entries) == blocks and len(blocks) == BLOCKS
    assert not table.missing_workloads()
    assert sorted(told.keys) == sorted([*blocks, *(key_of(record.choices) for record in table.networks)])
    assert all(len(entry.sessions) == 1 and len(entry.sessions[0]) == 3 for entry in table.entries.values())


def test_whole_networks_come_in_both_roles(finished):
    _, table, _ = finished
    roles = {SPACE.architecture(record.choices): record.role for record in table.networks}
    assert len(roles) == len(table.networks) == NETWORKS
    assert sorted(roles.values()) == ["fit"] * 3 + ["held_out"] * 2
    assert table.calibration.networks == 3 and table.held_out.networks == 2


def test_what_is_returned_is_what_is_on_disk(finished):
    path, table, _ = finished
    assert load_table(path).to_dict() == table.to_dict()
    assert [file.name for file in path.parent.iterdir()] == ["table.json"]  # no journal, no temporary file
    assert len(table.anchor.sessions_ms) == BLOCKS + NETWORKS
    assert table.environment["threads"] == 1 and table.environment["runtime"] == "onnxruntime-cpu"
    costs = Trellis(SPACE, table)
    assert 0 < costs.min_cost() < costs.max_cost()


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory):
    """What was told while everything was measured twice."""
    return profile(tmp_path_factory.mktemp("rounds") / "table.json", plan=replace(PLAN, min_sessions=2, max_sessions=2))[1]


def test_progress_rises_to_its_total(two_rounds):
    assert [(done, total) for done, total, _ in two_rounds] == [(index + 1, 22) for index in range(22)]


def test_a_round_takes_everything_in_random_order(two_rounds):
    """So that a drift of the machine falls on all alike: neither rounds nor the plan's own order repeat."""
    first, second = two_rounds.keys[:11], two_rounds.keys[11:]
    assert sorted(first) == sorted(second) and len(set(first)) == 11
    assert first != second
    assert first != [workload.key for workload in plan_workloads(SPACE, PLAN, 1, 0)]


def test_networks_with_few_sessions_have_them_in_all_rounds(tmp_path):
    """Rounds differ, so that a fit on the first ones would miss what is judged over all."""
    plan = replace(PLAN, fit_networks=5, held_out_networks=3, fit_sessions=2, held_out_sessions=5, max_sessions=5)
    table, told = profile(tmp_path / "table.json", plan=replace(plan, target_relative_ci=math.inf))
    roles = {key_of(record.choices): record.role for record in table.networks}
    rounds = [[roles[key] for key in told.keys[start:start + 5]] for start in range(BLOCKS, len(told), 5)]
    assert [sorted(found) for found in rounds] == 5 * [2 * ["fit"] + 3 * ["held_out"]]
    assert [(done, total) for done, total, _ in told] == [(index + 1, BLOCKS + 25) for index in range(BLOCKS + 25)]


def test_models_have_the_batch_size():
    for workload in plan_workloads(SPACE, PLAN, 3, 0):
        model = onnx.load_from_string(workload.model())
        onnx.checker.check_model(model)
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 3, workload.key


def test_one_block_is_one_model_wherever_it_stands():
    keys = [workload.key for workload in plan_workloads(SPACE, PLAN, 1, 0)]
    assert len(keys) == len(set(keys)) == BLOCKS + NETWORKS


@pytest.mark.parametrize(("fit", "held_out"), [(16, 24), (3, 2), (1, 5), (5, 0), (0, 5), (0, 0), (7, 7)])
def test_roles_are_as_many_as_planned_and_spread_alike(fit, held_out):
    space = make_large_space()
    trellis = Trellis(space, MacsCost())
    workloads = [one for one in plan_workloads(space, replace(PLAN, fit_networks=fit, held_out_networks=held_out), 1, 0)
                 if one.role != "entry"]
    costs = {role: [trellis.cost(space.architecture(one.choices)) for one in workloads if one.role == role]
             for role in ("fit", "held_out")}
    assert {role: len(found) for role, found in costs.items()} == {"fit": fit, "held_out": held_out}
    width = trellis.max_cost() - trellis.min_cost()
    for found in costs.values():
        if len(found) >= 16:
            assert max(found) - min(found) > 0.6 * width


def test_a_plan_that_cannot_be_is_refused():
    for wrong in ({"min_sessions": 0}, {"min_sessions": 7}, {"fit_networks": -1}, {"held_out_networks": -1},
                  {"max_minutes": -1.0}, {"max_minutes": float("nan")}, {"target_relative_ci": float("nan")}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            ProfilePlan(**wrong)


def test_networks_have_sessions_of_their_own(tmp_path):
    """Two of every network that calibrates, three of every one that judges, one of a block."""
    plan = replace(PLAN, fit_sessions=2, held_out_sessions=3)
    table, told = profile(tmp_path / "table.json", plan=plan)
    assert {record.role: len(record.sessions) for record in table.networks} == {"fit": 2, "held_out": 3}
    assert {len(entry.sessions) for entry in table.entries.values()} == {1}
    assert told[-1][:2] == (BLOCKS + 3 * 2 + 2 * 3,) * 2
    with pytest.raises(InputError, match="fit_sessions"):
        replace(PLAN, fit_sessions=0)


def test_the_default_path_names_device_runtime_and_space():
    with open_device("onnxruntime-cpu", RuntimeConfig(2)) as opened:
        environment = opened.environment(1)
    device, runtime, file = default_table_path(environment, SPACE).parts[1:]
    assert default_table_path(environment | {"device_id": "another generation"}, SPACE).parts[1] != device
    assert (runtime, file) == ("onnxruntime-cpu-fp32-2t", "small.json")
    assert device and device == device.lower() and not set(device) - set("abcdefghijklmnopqrstuvwxyz0123456789-")


# Whole networks


def test_spread_networks_cover_the_range():
    space = make_large_space()
    trellis = Trellis(space, MacsCost())
    chosen = spread_networks(space, 40, 0)
    assert len(set(chosen)) == len(chosen) == 40
    costs = np.array([trellis.cost(one) for one in chosen])
    assert costs[0] == trellis.min_cost() and costs[1] == trellis.max_cost()
    counts, _ = np.histogram(costs, bins=6, range=(trellis.min_cost(), trellis.max_cost()))
    assert counts.min() >= 2, counts  # uniform samples leave the outer sixths empty
    uniform, _ = np.histogram([trellis.cost(one) for one in trellis.sample(40)], bins=6,
                              range=(trellis.min_cost(), trellis.max_cost()))
    assert uniform.min() == 0


def test_spread_networks_are_a_function_of_the_seed():
    space = make_large_space()
    assert spread_networks(space, 20, 3) == spread_networks(space, 20, 3)
    assert spread_networks(space, 20, 3) != spread_networks(space, 20, 4)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9, 40])
def test_a_small_space_gives_all_that_it_has(count):
    for seed in range(5):
        chosen = spread_networks(SPACE, count, seed)
        assert len(chosen) == len(set(chosen)) == min(count, SPACE.size)


def test_a_space_hardly_larger_than_asked_gives_as_many_as_asked():
    space = make_large_space(decisions=2, options=5)
    for seed in range(10):
        assert len(set(spread_networks(space, 24, seed))) == 24


def test_options_of_equal_macs_spread_too():
    space = SearchSpace("flat", (3, 8, 8), (
        *(Decision(f"layer{index}", {"relu": ConvBlock(3), "relu6": ConvBlock(3, activation="relu6")}) for index in range(5)),
        Fixed("head", Head(4))))
    assert len(set(spread_networks(space, 10, 0))) == 10


# Going on after an interruption

KILLED = replace(PLAN, min_sessions=2, max_sessions=2)


@pytest.mark.parametrize("lines", [1, 2, 8, 13])
def test_a_killed_profile_goes_on_where_it_was(tmp_path, lines):
    path = tmp_path / "table.json"
    program = textwrap.dedent(f"""
        from dataclasses import replace
        from pathlib import Path
        from tests.profiling.test_profiler import KILLED, TIMING, profile
        profile(Path({str(path)!r}), plan=replace(KILLED, timing=replace(TIMING, sample_ms=5.0)))
    """)
    child = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    try:
        deadline = time.monotonic() + 120
        while not (journal_of(path).exists() and journal_of(path).read_bytes().count(b"\n") >= lines):
            assert child.poll() is None and time.monotonic() < deadline, "the profile ended, or never began"
            time.sleep(0.001)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert child.returncode == -signal.SIGKILL and not path.exists()
    before = sessions_of(journal_of(path))
    done = sum(map(len, before.values()))
    assert lines - 1 <= done < 22

    table, told = profile(path, plan=KILLED)
    assert len(told) == 22 - done and told[-1][:2] == (22, 22)
    assert not journal_of(path).exists() and not table.missing_workloads()
    measured = {key: entry.sessions for key, entry in table.entries.items()}
    measured |= {key_of(record.choices): record.sessions for record in table.networks}
    assert len(measured) == 11 and {len(sessions) for sessions in measured.values()} == {2}
    for key, sessions in before.items():
        assert list(measured[key][:len(sessions)]) == sessions  # kept as they were, in front


def test_a_finished_journal_whose_table_was_not_written_costs_nothing(tmp_path):
    """Killed between the last session and the table."""
    path = tmp_path / "table.json"
    journal = start_journal(path)
    keys = [workload.key for workload in plan_workloads(SPACE, PLAN, 1, 0)]
    with open(journal, "a") as file:
        file.writelines(session_line(key, [1.0, 1.1, 0.9]) for key in keys)
    table, told = profile(path)
    assert told == [] and not journal.exists()
    assert all(entry.sessions == ((1.0, 1.1, 0.9),) for entry in table.entries.values())


def test_a_table_whose_journal_was_not_removed_costs_nothing(finished, tmp_path):
    """Killed between the table and the removal of the journal."""
    path = tmp_path / "table.json"
    journal = start_journal(path)
    table = finished[1]
    sessions = {key: entry.sessions for key, entry in table.entries.items()}
    sessions |= {key_of(record.choices): record.sessions for record in table.networks}
    with open(journal, "a") as file:
        file.writelines(session_line(key, list(found[0])) for key, found in sessions.items())
    path.write_bytes(finished[0].read_bytes())
    again, told = profile(path)
    assert told == [] and not journal.exists()
    assert again.entries == table.entries and {key_of(one.choices): one for one in again.networks} == {
        key_of(one.choices): one for one in table.networks}


def session_line(key, ratios, anchor_ms=0.5):
    return json.dumps({"key": key, "ratios": ratios, "anchor_ms": anchor_ms}) + "\n"


@pytest.mark.parametrize("torn", [
    b"{", b'{"key": "conv(', '{"key": "ü'.encode()[:-1], b'{"key": "a", "ratios": [1.0], "anchor_ms": 1.0}'])
def test_a_torn_last_line_is_measured_again(tmp_path, torn):
    path = tmp_path / "table.json"
    journal = start_journal(path)
    keys = [workload.key for workload in plan_workloads(SPACE, PLAN, 1, 0)]
    whole = journal.read_bytes() + session_line(keys[0], [2.5, 2.5]).encode()
    journal.write_bytes(whole + torn)
    profile(path, plan=replace(PLAN, max_minutes=0))
    assert journal.read_bytes() == whole
    table, told = profile(path)
    assert sorted(told.keys) == sorted(keys[1:])
    assert table.entries[keys[0]].sessions == ((2.5, 2.5),)


@pytest.mark.parametrize("length", [0, 1, 100])
def test_a_torn_header_begins_anew(tmp_path, length):
    path = tmp_path / "table.json"
    journal = start_journal(path)
    header = journal.read_bytes()
    journal.write_bytes(header[:length])
    assert start_journal(path).read_bytes().startswith(header[:50])


@pytest.mark.parametrize("wrong", [
    b"garbage", b"{}", b"[]", b"3", b"null", b'{"key": "a"}', b'{"key": "a", "ratios": [], "anchor_ms": 1.0}',
    b'{"key": "a", "ratios": [1.0, 0.0], "anchor_ms": 1.0}', b'{"key": "a", "ratios": [1.0, NaN], "anchor_ms": 1.0}',
    b'{"key": "a", "ratios": [1.0, Infinity], "anchor_ms": 1.0}', b'{"key": "a", "ratios": [1.0], "anchor_ms": NaN}',
    b'{"key": "a", "ratios": [1.0], "anchor_ms": -1.0}', b'{"key": "a", "ratios": 1.0, "anchor_ms": 1.0}',
    b'{"key": ["a"], "ratios": [1.0], "anchor_ms": 1.0}', b'{"key": "\xff", "ratios": [1.0], "anchor_ms": 1.0}',
    b'{"key": "a", "ratios": ["x"], "anchor_ms": 1.0}', b'{"key": "a", "preparing_s": NaN}', b'{"key": "a", "preparing_s": "x"}',
    b'["preparing_s"]', b"[" * 100_000, b"",
])
def test_a_damaged_line_is_refused_and_left(tmp_path, wrong):
    path = tmp_path / "table.json"
    journal = start_journal(path)
    content = journal.read_bytes() + wrong + b"\n" + session_line("b", [1.0]).encode()
    journal.write_bytes(content)
    with pytest.raises(InputError, match="--restart"):
        profile(path)
    assert journal.read_bytes() == content and not path.exists()


def test_restart_discards_a_damaged_journal(tmp_path):
    path = tmp_path / "table.json"
    journal_of(path).write_bytes(b"garbage\n")
    table, told = profile(path, restart=True)
    assert len(told) == BLOCKS + NETWORKS and not table.missing_workloads() and not journal_of(path).exists()


@pytest.mark.parametrize("header", [b"garbage", b"{}", b"[]", b'{"schema": "hwnas.profile-journal/0"}'])
def test_another_file_is_no_journal(tmp_path, header):
    path = tmp_path / "table.json"
    journal_of(path).write_bytes(header + b"\n")
    with pytest.raises(InputError, match="--restart"):
        profile(path)
    assert journal_of(path).read_bytes() == header + b"\n"


def test_an_environment_that_is_none_is_refused(tmp_path):
    path = tmp_path / "table.json"
    journal = start_journal(path)
    header = json.loads(journal.read_text())
    for environment in ("here", None, 3, ["a"]):
        journal.write_text(json.dumps(header | {"environment": environment}) + "\n")
        with pytest.raises(InputError, match="--restart"):
            profile(path)


# What is of something else

OTHERS = {
    "space": ("space", {"space": make_space(width=12)}),
    "threads": ("threads", {"config": RuntimeConfig(2)}),
    "runtime": ("runtime", {"device": "openvino-cpu"}),
    "batch_size": ("batch_size", {"batch_size": 2}),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_table_of_something_else_is_refused_and_left(finished, table_path, other):
    key, arguments = OTHERS[other]
    with pytest.raises(InputError, match=key):
        profile(table_path, **arguments)
    assert table_path.read_bytes() == finished[0].read_bytes()
    assert not journal_of(table_path).exists()


@pytest.mark.parametrize("other", [*OTHERS, "seed"])
def test_a_journal_of_something_else_is_refused_and_left(tmp_path, other):
    key, arguments = (OTHERS | {"seed": ("seed", {"seed": 1})})[other]
    path = tmp_path / "table.json"
    journal = start_journal(path)
    with open(journal, "ab") as file:
        file.write(session_line("b", [1.0]).encode() + b'{"torn')
    content = journal.read_bytes()
    with pytest.raises(InputError, match=key):
        profile(path, **arguments)
    assert journal.read_bytes() == content and not path.exists()


@pytest.mark.parametrize("key", ["device", "device_flags", "runtime_version", "anchor", "setting.execution_mode"])
def test_another_environment_is_named(finished, table_path, tmp_path, key):
    table = replace(finished[1], environment={**finished[1].environment, key: "something else"})
    table.save(table_path)
    content = table_path.read_bytes()
    with pytest.raises(InputError, match=f"{key} is 'something else'"):
        profile(table_path)
    assert table_path.read_bytes() == content

    path = tmp_path / "other.json"
    journal = start_journal(path)
    header = json.loads(journal.read_text())
    header["environment"][key] = "something else"
    journal.write_text(json.dumps(header) + "\n")
    with pytest.raises(InputError, match=f"{key} is 'something else'"):
        profile(path)
    assert json.loads(journal.read_text()) == header


def test_what_is_no_table_is_refused_and_left(tmp_path):
    path = tmp_path / "table.json"
    path.write_text("my notes")
    with pytest.raises(InputError):
        profile(path)
    assert path.read_text() == "my notes" and list(tmp_path.iterdir()) == [path]


def test_restart_measures_anew(finished, table_path):
    table, told = profile(table_path, restart=True)
    assert len(told) == BLOCKS + NETWORKS
    assert {key: entry.sessions for key, entry in table.entries.items()} != {
        key: entry.sessions for key, entry in finished[1].entries.items()}
    assert load_table(table_path).to_dict() == table.to_dict()


def test_restart_makes_room_for_something_else(table_path):
    table, _ = profile(table_path, space=make_space(width=12), restart=True)
    assert table.search_space == make_space(width=12) and not table.missing_workloads()


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--output"):
        profile(tmp_path / "file" / "table.json")


def test_a_negative_seed_is_refused(tmp_path):
    with pytest.raises(InputError, match="seed"):
        profile(tmp_path / "table.json", seed=-1)
    assert not list(tmp_path.iterdir())


# How much is measured


def test_a_finished_table_is_not_measured_again(finished, table_path):
    table, told = profile(table_path, plan=replace(PLAN, min_sessions=3, max_sessions=6))
    assert told == [] and table.to_dict() == finished[1].to_dict()
    assert table_path.read_bytes() == finished[0].read_bytes()
    assert not journal_of(table_path).exists()


def test_time_over_before_the_first_session(tmp_path):
    path = tmp_path / "table.json"
    start_journal(path)
    assert not path.exists()
    table, told = profile(path)
    assert len(told) == BLOCKS + NETWORKS and not table.missing_workloads()


@pytest.mark.parametrize("done", range(1, 11))
def test_time_over_in_the_first_round_leaves_a_table_that_can_be_completed(tmp_path, done):
    """Whatever was measured by then, networks before their blocks among it."""
    path = tmp_path / "table.json"
    journal = start_journal(path)
    keys = [workload.key for workload in plan_workloads(SPACE, PLAN, 1, 0)][::-1]  # networks first
    with open(journal, "a") as file:
        file.writelines(session_line(key, [1.0]) for key in keys[:done])
    table, told = profile(path, plan=replace(PLAN, max_minutes=0))
    assert told == [] and journal.exists()
    assert set(table.entries) == set(keys[NETWORKS:done])
    assert load_table(path).missing_workloads()
    with pytest.raises(InputError, match="no entry"):
        Trellis(SPACE, table)

    table, told = profile(path)
    assert sorted(told.keys) == sorted(keys[done:])
    assert not table.missing_workloads() and len(table.networks) == NETWORKS and not journal.exists()


@pytest.mark.parametrize("done", [3, 8])
def test_an_incomplete_table_without_its_journal_is_completed(tmp_path, done):
    """Nothing of it is lost, however short the time is: with blocks missing, and with networks missing."""
    path = tmp_path / "table.json"
    journal = start_journal(path)
    keys = [workload.key for workload in plan_workloads(SPACE, PLAN, 1, 0)]
    with open(journal, "a") as file:
        file.writelines(session_line(key, [1.0]).replace("}", ', "total_s": 6.0}') for key in keys[:done])
    first, _ = profile(path, plan=replace(PLAN, max_minutes=0))
    for _ in range(2):
        journal.unlink()
        table, told = profile(path, plan=replace(PLAN, max_minutes=0))
        assert told == [] and not table.effort.complete
        assert (table.entries, table.networks, table.effort) == (first.entries, first.networks, first.effort)
    journal.unlink()
    table, told = profile(path)
    assert sorted(told.keys) == sorted(keys[done:]) and table.effort.complete and not journal.exists()
    assert table.effort.sessions == BLOCKS + NETWORKS and table.effort.minutes > done * 0.1
    assert all(table.entries[key].sessions == ((1.0,),) for key in keys[:min(done, BLOCKS)])
    assert len(table.networks) == NETWORKS
    assert [record.sessions for record in table.networks].count(((1.0,),)) == max(0, done - BLOCKS)


def test_what_was_refused_stays_so_without_a_journal(tmp_path):
    path = tmp_path / "table.json"
    journal = start_journal(path)
    keys = [workload.key for workload in plan_workloads(SPACE, PLAN, 1, 0)][:BLOCKS]
    refused = {next(key for key in keys if "kernel=1" in key): "It was ugly."}
    with open(journal, "a") as file:
        file.write(session_line(keys[0], [1.0]))
        file.writelines(json.dumps({"key": key, "refused": reason, "preparing_s": 90.0}) + "\n"
                        for key, reason in refused.items())
    profile(path, plan=replace(PLAN, max_minutes=0))
    journal.unlink()
    table, told = profile(path)
    assert table.refused == refused and table.effort.complete and table.effort.minutes > 1.5
    assert not set(refused) & set(told.keys)


def refusal_line(key):
    return json.dumps({"key": key, "refused": "It was ugly.", "preparing_s": 1.0}) + "\n"


def test_networks_that_are_refused_have_others_in_their_place(tmp_path):
    """Of five networks, two at most; the journal, and without it the table, know what was refused."""
    path = tmp_path / "table.json"
    journal = start_journal(path)
    blocks, networks = (plan_workloads(SPACE, PLAN, 1, 0)[part] for part in (slice(BLOCKS), slice(BLOCKS, None)))
    gone = [networks[3].key, networks[0].key]
    with open(journal, "a") as file:
        file.writelines([session_line(blocks[0].key, [1.0]), session_line(gone[0], [1.0]), *map(refusal_line, gone)])
    table, told = profile(path, plan=replace(PLAN, max_minutes=0))
    assert told == [] and list(table.refused) == gone and table.effort.planned_sessions == BLOCKS + NETWORKS + 1
    journal.unlink()
    table, told = profile(path)
    assert list(table.refused) == gone and table.effort.complete and not table.missing_workloads() and not journal.exists()
    assert not set(gone) & set(told.keys) and not set(gone) & {key_of(record.choices) for record in table.networks}
    assert sorted(record.role for record in table.networks) == ["fit"] * 3 + ["held_out"] * 2
    assert Trellis(SPACE, table).count() == SPACE.size and list(refused_networks(load_table(path))) == [
        key.removeprefix("network ") for key in gone]
    assert [one for one in table_warnings(table) if "refuses 2 whole network(s)" in one and "(It was ugly)" in one]
    assert profile(path)[1] == []


def test_networks_that_are_refused_are_no_blocks(tmp_path):
    """Every network of the space, which are more than it has blocks."""
    path = tmp_path / "table.json"
    journal = start_journal(path)
    everything = [network_key(one) for one in spread_networks(SPACE, SPACE.size, 0)]
    with open(journal, "a") as file:
        file.writelines(map(refusal_line, [*everything, "network of another space"]))
    table, told = profile(path)
    assert table.effort.complete and list(table.refused) == everything and not table.networks
    assert set(table.entries) == set(told.keys) == {workload.key for workload in plan_workloads(SPACE, PLAN, 1, 0)[:BLOCKS]}
    assert [one for one in table_warnings(table) if "refuses 8 whole network(s)" in one]


@pytest.mark.parametrize("seed", range(5))
def test_what_stands_in_already_stays_when_more_is_refused(seed):
    space, plan = make_large_space(), replace(PLAN, fit_networks=16, held_out_networks=8)
    generator = np.random.default_rng(seed)
    before = {one.key: one.role for one in plan_networks(space, plan, 1, seed)}
    refused, tried = [], set(before)
    for number in range(1, 30):
        if not before:
            break
        key = str(generator.choice(list(before)))
        refused.append(key)
        now = {one.key: one.role for one in plan_networks(space, plan, 1, seed, refused)}
        kept = {one: role for one, role in before.items() if one != key}
        assert kept.items() <= now.items()
        new = [one for one in now if one not in kept]
        assert len(new) == (number <= 6) and not tried & set(new)  # a quarter of them
        assert all(now[one] == before[key] for one in new)
        before, tried = now, tried | set(new)
    assert len(refused) == 29 and len(before) == 1


def test_refused_blocks_leave_the_other_networks_their_roles():
    space, plan = make_large_space(), replace(PLAN, fit_networks=16, held_out_networks=8)
    before = {one.key: one.role for one in plan_networks(space, plan, 1, 0)}
    edge = next(edge for edge in space.steps[3].edges if edge.option == 2)
    whole = next(iter(before))
    now = {one.key: one.role for one in plan_networks(space, plan, 1, 0, [edge.workload, whole])}
    assert len(now) == 24 and sorted(now.values()) == sorted(before.values())
    assert {one: role for one, role in now.items() if one in before}.items() <= before.items()
    possible = [key for key in before if "k5" not in key and key != whole]
    assert possible and set(possible) <= set(now) and not any("k5" in key for key in now)


def test_a_space_without_blocks_has_a_table_too(tmp_path):
    space = SearchSpace("free", (3, 8, 8), (Decision("only", {"skip": Identity()}),))
    table, told = profile(tmp_path / "table.json", space)
    assert len(told) == 1 == len(table.networks) and not table.entries and table.effort.complete


def test_time_over_in_a_later_round_leaves_a_usable_table_that_improves(tmp_path):
    path = tmp_path / "table.json"
    profile(path)
    plan = replace(PLAN, min_sessions=2, max_sessions=2)
    path.unlink()
    journal = start_journal(path, plan)
    keys = [workload.key for workload in plan_workloads(SPACE, plan, 1, 0)]
    with open(journal, "a") as file:
        file.writelines(session_line(key, [1.0]) for key in [*keys, *keys[:4]])
    table, told = profile(path, plan=replace(plan, max_minutes=0))
    assert told == [] and not table.missing_workloads() and Trellis(SPACE, table).min_cost() > 0
    table, told = profile(path, plan=plan)
    assert sorted(told.keys) == sorted(keys[4:])
    assert {len(entry.sessions) for entry in table.entries.values()} == {2}


def test_time_is_kept(tmp_path):
    plan = replace(PLAN, min_sessions=500, max_sessions=500, max_minutes=0.3 / 60)
    try:
        _, told = profile(tmp_path / "table.json", plan=plan)
    except InputError as error:  # a machine so busy that not one session fitted
        assert "time was over" in str(error)
    else:
        assert 0 < len(told) < 500 * 11


def test_exported_networks_and_sittings_stay_while_a_table_improves(finished, tmp_path):
    """Certifications and judgements add to a table whose journal is still there, when time was over in a later round."""
    path = tmp_path / "table.json"
    plan = replace(PLAN, min_sessions=2, max_sessions=2)
    journal = start_journal(path, plan)
    with open(journal, "a") as file:
        file.writelines(session_line(one.key, [1.0]) for one in plan_workloads(SPACE, plan, 1, 0))
    table, _ = profile(path, plan=replace(plan, max_minutes=0))
    record = NetworkRecord(choices=dict(table.networks[0].choices), sessions=((7.0,),), role="exported")
    sitting = SittingRecord(measured_utc="2026-11-22T00:00:00+00:00", anchor_ms=1.0, networks=(record,))
    table.with_networks([record]).with_sitting(sitting).save(path)
    table, told = profile(path, plan=plan)
    assert table.sittings == load_table(path).sittings == (sitting,)
    assert len(told) == 11 and [one for one in table.networks if one.role == "exported"] == [record]


def test_only_what_is_noisy_gets_more_sessions(tmp_path):
    """Two workloads whose sessions disagree by more than any later one can mend, in a journal of three rounds; the others
    scatter by 3 %, which makes an interval of 3.6 %."""
    path = tmp_path / "table.json"
    plan = replace(PLAN, min_sessions=3, max_sessions=5)
    journal = start_journal(path, plan)
    keys = [workload.key for workload in plan_workloads(SPACE, plan, 1, 0)]
    noisy = {keys[2], keys[-1]}
    with open(journal, "a") as file:
        for wild, usual in ((1.0, 1.0), (30.0, 1.03), (900.0, 0.97)):
            file.writelines(session_line(key, [wild if key in noisy else usual] * 3) for key in keys)
    table, told = profile(path, plan=plan)
    assert sorted(told.keys) == sorted([*noisy, *noisy])
    assert {key for key, entry in table.entries.items() if entry.label == "noisy"} == {keys[2]}
    assert {key: len(entry.sessions) for key, entry in table.entries.items()} == {
        key: 5 if key in noisy else 3 for key in keys[:BLOCKS]}


def test_a_session_is_on_disk_before_it_is_told(tmp_path):
    path = tmp_path / "table.json"
    seen = []

    def look(done, total, key):
        content = journal_of(path).read_bytes()
        assert content.endswith(b"\n") and json.loads(content.splitlines()[-1])["key"] == key
        seen.append(content.count(b"\n") - 1)

    with open_device("onnxruntime-cpu", CONFIG) as device:
        profile_space(SPACE, device, path, plan=PLAN, progress=look)
    assert seen == list(range(1, BLOCKS + NETWORKS + 1))
    assert os.listdir(tmp_path) == ["table.json"]


def test_restart_deletes_nothing_but_a_table(tmp_path):
    notes = tmp_path / "notes.txt"
    notes.write_text("not a table")
    with pytest.raises(InputError, match="something else"):
        profile(notes, restart=True)
    assert notes.read_text() == "not a table"


# Some blocks measured, the others estimated


CHOSEN = 24  # of 28
FEW = replace(PLAN, min_sessions=2, max_sessions=2, target_relative_ci=math.inf, blocks=CHOSEN)
FBNET = load_space("fbnet-cpu")


@pytest.fixture(scope="module")
def sampled(tmp_path_factory):
    """A table of some blocks, and what was told."""
    path = tmp_path_factory.mktemp("sampled") / "table.json"
    return path, *profile(path, FBNET, FEW)


def measured_of(table):
    return {key: entry for key, entry in table.entries.items() if entry.is_measured}


def test_some_blocks_are_measured_once_and_the_others_estimated(sampled):
    path, table, told = sampled
    parts = FBNET.measured_parts
    measured = measured_of(table)
    assert list(table.entries) == list(parts) and set(measured) == {one.key for one in plan_blocks(FBNET, 1, CHOSEN)}
    assert len(measured) == CHOSEN < len(parts) and all(len(entry.sessions) == 1 for entry in measured.values())
    assert sorted(told.keys) == sorted([*measured, *2 * [network_key(FBNET.architecture(one.choices)) for one in table.networks]])
    expected = estimate_blocks(parts, {key: entry.ratio for key, entry in measured.items()}).ratios
    assert {key: entry.sessions for key, entry in table.entries.items() if key not in measured} == {
        key: ((ratio,),) for key, ratio in expected.items()}
    assert load_table(path) == table and table.effort.complete and not table.missing_workloads()
    assert Trellis(FBNET, table).min_cost() > 0 and table.predict(Trellis(FBNET).sample(1, seed=0)[0]).latency_ms > 0


def test_more_blocks_are_added_to_some(sampled, tmp_path):
    before = measured_of(sampled[1])
    path = tmp_path / "table.json"
    path.write_bytes(sampled[0].read_bytes())
    again, told = profile(path, FBNET, replace(FEW, blocks=CHOSEN - 3))
    assert told == [] and again == sampled[1]  # it has these, and more
    more, told = profile(path, FBNET, replace(FEW, blocks=CHOSEN + 2))
    assert len(told) == 2 and len(measured_of(more)) == CHOSEN + 2 and before.items() <= measured_of(more).items()
    every, told = profile(path, FBNET, replace(FEW, blocks=None, min_sessions=1))
    assert set(told.keys) == set(FBNET.measured_parts) - set(measured_of(more)) and len(measured_of(every)) == len(every.entries)


def test_a_table_of_some_blocks_stays_of_use_while_more_are_measured(sampled, tmp_path):
    path = tmp_path / "table.json"
    path.write_bytes(sampled[0].read_bytes())
    again, told = profile(path, FBNET, replace(FEW, blocks=None, min_sessions=1, max_minutes=0))
    assert told == [] and again.entries == sampled[1].entries and not again.effort.complete
    every, _ = profile(path, FBNET, replace(FEW, blocks=None, min_sessions=1))
    assert len(measured_of(every)) == len(every.entries) and every.effort.complete


def test_a_table_of_some_blocks_is_completed_without_its_journal(sampled, tmp_path):
    """Estimates are not taken for sessions."""
    path = tmp_path / "table.json"
    table = sampled[1]
    gone = list(measured_of(table))[-1]
    estimate = table.entries[gone].model_copy(update={"sessions": ((1.0,),), "label": "estimated"})
    replace(table, entries={**table.entries, gone: estimate}).save(path)
    again, told = profile(path, FBNET, FEW)
    assert told.keys == [gone] and set(measured_of(again)) == set(measured_of(table)) and again.effort.complete


def test_what_was_measured_is_kept_by_a_call_that_asks_for_less(tmp_path):
    path = tmp_path / "table.json"
    journal = start_journal(path, replace(FEW, blocks=None), space=FBNET)
    keys = list(FBNET.measured_parts)
    with open(journal, "a") as file:
        file.writelines(session_line(key, [1.5]) for key in keys[:-1])
    table, _ = profile(path, FBNET, replace(FEW, blocks=20))
    kept = {key: entry for key, entry in table.entries.items() if entry.sessions == ((1.5,),)}
    assert set(keys[:-1]) == set(kept) and table.effort.complete and list(table.entries) == keys
    last = table.entries[keys[-1]]
    assert last.is_measured == (keys[-1] in {one.key for one in plan_blocks(FBNET, 1, 20)})


def test_too_few_measured_blocks_estimate_nothing(tmp_path):
    """The time was over after nineteen: the table lacks all others, and goes on from there."""
    path = tmp_path / "table.json"
    journal = start_journal(path, FEW, space=FBNET)
    chosen = [one.key for one in plan_blocks(FBNET, 1, CHOSEN)]
    with open(journal, "a") as file:
        file.writelines(session_line(key, [1.0]) for key in chosen[:19])
    table, _ = profile(path, FBNET, replace(FEW, max_minutes=0))
    assert set(table.entries) == set(chosen[:19]) and len(table.missing_workloads()) == len(FBNET.measured_parts) - 19
    with open(journal, "a") as file:
        file.writelines(session_line(key, [1.0]) for key in chosen[19:20])
    table, _ = profile(path, FBNET, replace(FEW, max_minutes=0))
    assert len(measured_of(table)) == 20 and not table.missing_workloads() and not table.effort.complete
    assert all(entry.ratio == pytest.approx(1.0) for entry in table.entries.values())


def test_a_refused_block_is_not_estimated(tmp_path):
    path = tmp_path / "table.json"
    journal = start_journal(path, FEW, space=FBNET)
    refused = [one.key for one in plan_blocks(FBNET, 1, CHOSEN)][2]
    with open(journal, "a") as file:
        file.write(json.dumps({"key": refused, "refused": "It is not for this runtime.", "preparing_s": 0.1}) + "\n")
    table, _ = profile(path, FBNET, FEW)
    assert list(table.refused) == [refused] and refused not in table.entries and not table.missing_workloads()


@given(count=st.integers(20, 1300), more=st.integers(0, 300), seed=st.integers(0, 3))
def test_the_blocks_of_a_smaller_count_are_among_those_of_a_larger(count, more, seed):
    space = load_space("ofa-mobilenet-v3")
    few, many, every = ([one.key for one in plan_blocks(space, 1, number, seed)] for number in (count, count + more, None))
    assert len(few) == min(count, len(every)) and set(few) <= set(many) <= set(every)
    assert few == [key for key in every if key in set(few)]


@pytest.mark.parametrize("seed", range(3))
def test_what_every_network_has_is_always_measured(seed):
    space = load_space("spos-blocks-channels")
    chosen = {one.key for one in plan_blocks(space, 1, 20, seed)}
    for path in map(space.path, Trellis(space).sample(3, seed=0)):
        assert {path[0].workload, path[-1].workload} <= chosen  # stem and head
    assert chosen != {one.key for one in plan_blocks(space, 1, 20, seed + 1)}


def test_fewer_blocks_than_can_estimate_are_refused():
    with pytest.raises(InputError, match="At least 20 blocks must be measured to estimate the others, but blocks is 19"):
        ProfilePlan(blocks=19)


# What else may happen


def test_one_profiler_at_a_time(tmp_path):
    """The second says who is at work; the first does not notice."""
    path = tmp_path / "table.json"
    seen = []

    def intrude(done, total, key):
        if not seen:
            with pytest.raises(InputError, match=f"process {os.getpid()} is at work") as caught:
                profile(path)
            seen.append(caught.value.exit_code)

    with open_device("onnxruntime-cpu", CONFIG) as device:
        profile_space(SPACE, device, path, plan=PLAN, progress=intrude)
    assert seen == [2] and os.listdir(tmp_path) == ["table.json"]
    assert profile(path)[1] == []  # and is free again


def test_a_profiler_that_was_killed_leaves_no_lock(tmp_path):
    path = tmp_path / "table.json"
    (tmp_path / "table.json.lock").write_text("4194305")  # a process that is no more
    _, told = profile(path)
    assert len(told) == BLOCKS + NETWORKS and os.listdir(tmp_path) == ["table.json"]


def test_a_disk_that_fills_up_costs_the_session_under_way(tmp_path):
    """The journal may grow by no more than a few lines; then there is room again."""
    path = tmp_path / "table.json"
    size = len(start_journal(path).read_bytes())
    program = textwrap.dedent(f"""
        import resource, signal, sys
        from pathlib import Path
        from hwnas.errors import InputError
        from tests.profiling.test_profiler import profile
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 600}, resource.RLIM_INFINITY))
        try:
            profile(Path({str(path)!r}))
        except InputError as error:
            print(error, file=sys.stderr)
            sys.exit(7)
    """)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 7 and "journal" in done.stderr and "make room" in done.stderr, done.stderr
    kept = sessions_of(journal_of(path))
    assert 0 < len(kept) < BLOCKS + NETWORKS and not path.exists()
    table, told = profile(path)
    assert len(told) == BLOCKS + NETWORKS - len(kept) and table.effort.complete
    assert all(tuple(sessions) == table.entries[key].sessions for key, sessions in kept.items() if key in table.entries)


def test_a_session_of_a_machine_that_was_another_does_not_count(tmp_path):
    """A block whose first session saw an anchor ten times as slow as all others is measured again, up to a bound."""
    path = tmp_path / "table.json"
    plan = replace(PLAN, max_anchor_change=5.0)
    journal = start_journal(path, plan)
    keys = [workload.key for workload in plan_workloads(SPACE, plan, 1, 0)]
    with open_device("onnxruntime-cpu", CONFIG) as device:
        usual_ms = device.measure(anchor_model(), TIMING).anchor_ms
    with open(journal, "a") as file:
        file.writelines(session_line(key, [1.0], usual_ms * (100 if key == keys[2] else 1)) for key in keys)
    table, told = profile(path, plan=plan)
    assert set(told.keys) == {keys[2]} and 1 <= len(told) <= 3
    again = table.entries[keys[2]].sessions
    assert (1.0,) not in again and all(len(session) == 3 for session in again)
    assert table.effort.complete and len(table.anchor.sessions_ms) == len(keys) + len(told)


def test_effort_is_what_was_spent(finished, tmp_path):
    _, table, _ = finished
    effort = table.effort
    assert effort.sessions == effort.planned_sessions == BLOCKS + NETWORKS and effort.complete
    assert 0 < effort.timing_minutes < effort.minutes < 5
    path = tmp_path / "table.json"
    start_journal(path)
    keys = [workload.key for workload in plan_workloads(SPACE, PLAN, 1, 0)]
    with open(journal_of(path), "a") as file:
        file.writelines(session_line(key, [1.0]) for key in keys[:BLOCKS + 1])
    table, _ = profile(path, plan=replace(PLAN, max_minutes=0))
    assert not table.effort.complete
    assert (table.effort.sessions, table.effort.planned_sessions) == (BLOCKS + 1, BLOCKS + NETWORKS)
