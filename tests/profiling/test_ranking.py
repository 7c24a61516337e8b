"""The ranking of networks on a real runtime: what it measures, that it adds to what is there, and that a kill costs a session."""

import json
import math
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from statistics import median

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwnas.errors import InputError
from hwnas.ir.blocks import ConvBlock, Head, Stem
from hwnas.ir.network import build_network
from hwnas.profiling.device import Device, launch_here
from hwnas.profiling.ranking import default_ranking_path, pareto_front, rank_networks
from hwnas.profiling.rounds import RoundsPlan
from hwnas.profiling.timing import TimingPlan
from hwnas.runtimes import RuntimeConfig, load_runtime
from hwnas.spaces.reference import Published, ReferenceNetwork
from tests.profiling.open_devices import device_of

ROOT = Path(__file__).parents[2]
RUNTIME, CONFIG = load_runtime("onnxruntime-cpu"), RuntimeConfig()
TIMING = TimingPlan(sample_ms=0.05, min_pairs=3, max_pairs=3, max_seconds=0.05, warmup_pairs=1, max_warmup_seconds=0.001)
PLAN = RoundsPlan(min_sessions=2, max_sessions=2, timing=TIMING, max_anchor_change=math.inf)


def reference(name, width, top1, size=32):
    """A network of three layers; a wide one takes a hundred times as long as a narrow one."""
    def build():
        return build_network((3, size, size), [("stem", Stem(4)), ("body", ConvBlock(width)), ("head", Head(4))])

    return ReferenceNetwork(name, build, Published(None, None, top1, "a paper"))


NETWORKS = (reference("narrow-v1", 4, 60.0), reference("wide-v1", 512, 70.0, size=96), reference("unjudged", 8, None))


class Picky:
    """ONNX Runtime, but it refuses wide models; keeps what it was given."""

    def __init__(self):
        self.models = []

    def __getattr__(self, name):
        return getattr(RUNTIME, name)

    def prepare(self, model, config):
        graph = onnx.load_from_string(model).graph
        self.models.append(graph)
        if any(512 in weight.dims for weight in graph.initializer):
            raise InputError("This runtime has no wide layers: choose another network.")
        return RUNTIME.prepare(model, config)


def rank(path, networks=NETWORKS, plan=PLAN, runtime=RUNTIME, config=CONFIG, **arguments):
    told = []
    with nullcontext(device_of(RUNTIME.name, config)) if runtime is RUNTIME else Device(runtime, config, launch_here) as device:
        ranking = rank_networks(networks, device, path, plan=plan,
                                progress=lambda done, total, name: told.append((done, total, name)), **arguments)
    return ranking, told


def journal_of(path):
    return path.with_name(path.name + ".journal")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranking") / "deep" / "ranking.json"
    return path, *rank(path)


@pytest.fixture
def ranking_path(finished, tmp_path):
    path = tmp_path / "ranking.json"
    path.write_bytes(finished[0].read_bytes())
    return path


# What is measured


def test_latencies_follow_from_the_sessions(finished):
    _, ranking, _ = finished
    sessions = [session for network in ranking.networks for session in network.sessions]
    assert len(sessions) == 6 and ranking.anchor_ms == median(session.anchor_ms for session in sessions)
    for network in ranking.networks:
        ratio = median(median(session.ratios) for session in network.sessions)
        assert network.latency_ms == pytest.approx(ratio * ranking.anchor_ms)
        assert 0 < network.latency_ms - network.lower_ms == pytest.approx(network.upper_ms - network.latency_ms)


def test_networks_come_fastest_first(finished):
    _, ranking, _ = finished
    latencies = [network.latency_ms for network in ranking.networks]
    assert latencies == sorted(latencies) and ranking.networks[-1].name == "wide-v1"
    assert [network.name for network in ranking.front] == ["narrow-v1", "wide-v1"]
    assert ranking.unfinished == () and ranking.refused == {}


def test_a_network_carries_its_counts_and_what_was_published(finished):
    _, ranking, _ = finished
    found = {network.name: network for network in ranking.networks}
    for network in NETWORKS:
        one = found[network.name]
        assert (one.macs, one.parameters, one.top1, one.source) == (
            network.network.macs, network.network.parameters, network.published.top1, "a paper")


def test_a_round_takes_everything_in_random_order(finished):
    _, _, told = finished
    assert [(done, total) for done, total, _ in told] == [(index + 1, 6) for index in range(6)]
    names = [name for *_, name in told]
    assert sorted(names[:3]) == sorted(names[3:]) == sorted(network.name for network in NETWORKS)


def test_what_is_returned_is_what_is_on_disk(finished):
    path, ranking, _ = finished
    document = json.loads(path.read_text())
    assert document == json.loads(json.dumps(ranking.to_dict()))
    assert document["schema"] == "hwnas.ranking/1" and document["environment"]["runtime"] == "onnxruntime-cpu"
    assert document["anchor"]["latency_ms"] == ranking.anchor_ms
    assert [file.name for file in path.parent.iterdir()] == ["ranking.json"]  # no journal, no temporary file


def test_models_have_the_batch_size(tmp_path):
    runtime = Picky()
    ranking, _ = rank(tmp_path / "ranking.json", NETWORKS[:1], runtime=runtime, batch_size=3)
    assert ranking.environment["batch_size"] == 3
    assert {graph.input[0].type.tensor_type.shape.dim[0].dim_value for graph in runtime.models} == {1, 3}  # the anchor has 1


def test_what_a_runtime_refuses_is_left_out(tmp_path):
    ranking, told = rank(tmp_path / "ranking.json", runtime=Picky())
    assert {network.name for network in ranking.networks} == {"narrow-v1", "unjudged"}
    assert ranking.refused == {"wide-v1": "This runtime has no wide layers: choose another network."}
    assert ranking.unfinished == () and told[-1][:2] == (4, 4)
    with pytest.raises(InputError, match="no wide layers"):
        rank(tmp_path / "other.json", NETWORKS[1:2], runtime=Picky())


def test_the_default_path_names_device_runtime_and_batch():
    environment = {"device": "An Old-CPU", "device_id": "6/85/7", "runtime": "onnxruntime-cpu", "precision": "fp32", "threads": 2}
    assert default_ranking_path(environment).parts == ("network_latencies", "an-old-cpu-6-85-7", "onnxruntime-cpu-fp32-2t.json")
    assert default_ranking_path(environment | {"threads": 1}, 8).name == "onnxruntime-cpu-fp32-1t-batch8.json"
    of_a_gpu = environment | {"runtime": "torch-cuda", "setting.gpu": "NVIDIA H200"}
    assert default_ranking_path(of_a_gpu).parts[1] == "nvidia-h200"


# The front


@given(st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), max_size=12))
def test_the_front_is_what_no_other_dominates(points):
    brute_force = [not any(other[0] <= point[0] and other[1] >= point[1] and other != point for other in points)
                   for point in points]
    assert pareto_front(points) == brute_force


# Going on


def test_a_finished_ranking_is_not_measured_again(finished, ranking_path):
    ranking, told = rank(ranking_path)
    assert told == [] and ranking.networks == finished[1].networks
    assert ranking_path.read_bytes() == finished[0].read_bytes() and not journal_of(ranking_path).exists()


def test_networks_are_added_to_those_that_are_there(tmp_path):
    path = tmp_path / "ranking.json"
    first, _ = rank(path, only=["narrow-v1"])
    second, told = rank(path, only=["unjudged"])
    assert [network.name for network in second.networks] == ["unjudged"] and len(told) == 2
    whole, told = rank(path, only=["narrow-v1", "unjudged"])
    assert told == [] and {network.name: network.sessions for network in whole.networks} == {
        network.name: network.sessions for network in (*first.networks, *second.networks)}


def test_a_network_whose_layers_changed_is_measured_again(ranking_path):
    changed = (reference("narrow-v1", 6, 60.0), *NETWORKS[1:])
    ranking, told = rank(ranking_path, changed)
    assert {name for *_, name in told} == {"narrow-v1"} and len(ranking.networks) == 3
    assert len(json.loads(ranking_path.read_text())["networks"]) == 3


@pytest.mark.parametrize("torn", [0, 7])
def test_a_killed_ranking_goes_on_where_it_was(tmp_path, torn):
    """Killed for good, and as if in the middle of a line."""
    path = tmp_path / "ranking.json"
    program = textwrap.dedent(f"""
        from dataclasses import replace
        from pathlib import Path
        from tests.profiling.test_ranking import PLAN, TIMING, rank
        rank(Path({str(path)!r}), plan=replace(PLAN, timing=replace(TIMING, sample_ms=5.0)))
    """)
    child = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT)
    try:
        deadline = time.monotonic() + 120
        while not (journal_of(path).exists() and journal_of(path).read_bytes().count(b"\n") >= 3):
            assert child.poll() is None and time.monotonic() < deadline, "the ranking ended, or never began"
            time.sleep(0.001)
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
    assert child.returncode == -signal.SIGKILL and not path.exists()
    journal = journal_of(path)
    content = journal.read_bytes()
    journal.write_bytes(content[:content.rfind(b"\n") + 1 - torn])
    kept = [json.loads(line)["ratios"] for line in journal.read_bytes().split(b"\n")[1:-1]]
    assert len(kept) >= (1 if torn else 2)

    ranking, told = rank(path)
    assert len(told) == 6 - len(kept) and told[-1][:2] == (6, 6) and not journal.exists()
    sessions = [list(session.ratios) for network in ranking.networks for session in network.sessions]
    assert len(sessions) == 6 and all(ratios in sessions for ratios in kept)


def test_time_over_leaves_what_there_is_and_says_what_is_missing(tmp_path):
    path = tmp_path / "ranking.json"
    with pytest.raises(InputError, match="time was over"):
        rank(path, plan=replace(PLAN, max_minutes=0))
    assert not list(tmp_path.iterdir())
    rank(path, only=["unjudged"])
    ranking, told = rank(path, only=["unjudged", "narrow-v1"], plan=replace(PLAN, max_minutes=0))
    assert told == [] and ranking.unfinished == ("narrow-v1",) and [network.name for network in ranking.networks] == ["unjudged"]
    ranking, told = rank(path)
    assert len(told) == 4 and ranking.unfinished == ()


def test_restart_measures_anew(finished, ranking_path):
    ranking, told = rank(ranking_path, restart=True)
    assert len(told) == 6 and [network.sessions for network in ranking.networks] != [
        network.sessions for network in finished[1].networks]


# What is of something else


@pytest.mark.parametrize(("key", "arguments"), [("threads", {"config": RuntimeConfig(2)}), ("batch_size", {"batch_size": 2})])
def test_a_ranking_of_another_environment_is_refused_and_left(finished, ranking_path, key, arguments):
    with pytest.raises(InputError, match=f"{key} is 1 there and 2 here.*--restart"):
        rank(ranking_path, **arguments)
    assert ranking_path.read_bytes() == finished[0].read_bytes() and not journal_of(ranking_path).exists()


def test_a_journal_of_another_environment_is_refused_and_left(finished, tmp_path):
    path = tmp_path / "ranking.json"
    header = {"schema": "hwnas.ranking-journal/1", "environment": {**finished[1].environment, "device": "another"}}
    journal_of(path).write_text(json.dumps(header) + "\n")
    with pytest.raises(InputError, match="device is 'another' there"):
        rank(path)
    assert json.loads(journal_of(path).read_text()) == header and not path.exists()


@pytest.mark.parametrize("wrong", [
    "my notes", "[]", "{}", '{"schema": "hwnas.latency-table/1"}', '{"schema": "hwnas.ranking/1"}'])
def test_what_is_no_ranking_is_refused_and_left(tmp_path, wrong):
    path = tmp_path / "ranking.json"
    path.write_text(wrong)
    with pytest.raises(InputError):
        rank(path)
    if "ranking" not in wrong:
        with pytest.raises(InputError, match="something else"):
            rank(path, restart=True)
    assert path.read_text() == wrong and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("session", [
    {"ratios": [], "anchor_ms": 1.0}, {"ratios": [1.0]}, {"ratios": [-1.0], "anchor_ms": 1.0}, 3])
def test_a_damaged_ranking_is_refused(ranking_path, session):
    document = json.loads(ranking_path.read_text())
    document["networks"][0]["sessions"][0] = session
    ranking_path.write_text(json.dumps(document))
    with pytest.raises(InputError, match="cannot be read"):
        rank(ranking_path)


def test_a_place_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--output"):
        rank(tmp_path / "file" / "ranking.json")
