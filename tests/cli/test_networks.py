"""`hwnas networks`: the list, one network's details, and the ranking on a device."""

import json
import sys
from functools import partial
from pathlib import Path

import pytest

from hwnas.ir.blocks import ConvBlock, Head, Stem
from hwnas.ir.network import build_network
from hwnas.profiling.timing import TimingPlan
from hwnas.spaces.load import load_space
from hwnas.spaces.reference import Published, ReferenceNetwork
from tests.cli.command import hwnas, refused
from tests.cli.conftest import DEVICE

FAST = TimingPlan(sample_ms=0.05, min_pairs=3, max_pairs=3, max_seconds=0.05, warmup_pairs=1, max_warmup_seconds=0.001)


def build(width, size):
    return build_network((3, size, size), [("stem", Stem(4)), ("body", ConvBlock(width)), ("head", Head(4))])


def some_path():
    space = load_space("mobile-cpu")
    return space.architecture({decision.name: next(iter(decision.options)) for decision in space.decisions})


TINY = {one.name: one for one in (
    ReferenceNetwork("tiny-wide", partial(build, 512, 96), Published(40_000_000, 20_000, 70.0, "a paper")),
    ReferenceNetwork("tiny-narrow", partial(build, 4, 32), Published(40_000, 300, 60.0, "a paper"), "It rounds.", some_path),
    ReferenceNetwork("tiny-unjudged", partial(build, 8, 32), Published(None, None, None, "a note")))}


@pytest.fixture
def tiny(monkeypatch):
    """Three networks that are timed in a moment."""
    monkeypatch.setattr("hwnas.spaces.networks.NETWORKS", TINY)
    monkeypatch.setattr("hwnas.profiling.ranking.TIMING", FAST)


# What there is


def test_the_list_is_the_interface_s():
    for row in hwnas("networks", "--json").json:
        assert set(row["published"]) == {"macs", "parameters", "top1", "source"} and row["published"]["source"]
        assert row["macs"] > 0 and row["parameters"] == sum(row["parameters_by_kind"].values()) and "latency_ms" not in row


def test_the_table_names_every_network(tiny):
    done = hwnas("networks")
    assert done.code == 0 and done.err == ""
    lines = done.out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(TINY)
    macs = 48 * 48 * (4 * 3 * 9 + 512 * 4 * 9) + 512 * 4  # stem, body, head
    parameters = 4 * 3 * 9 + 2 * 4 + 512 * 4 * 9 + 2 * 512 + 512 * 4 + 4
    assert lines[2].split() == ["tiny-wide", f"{macs / 1e6:.2f}", "M", "40.00", "M", f"{parameters:,}", "20,000", "70.0",
                                "a", "paper"]


def test_details_tell_counts_note_path_and_layers(tiny):
    done = hwnas("networks", "tiny-narrow")
    assert done.code == 0, done.err
    network = TINY["tiny-narrow"].network
    for words in (f"{network.macs:,}", "(published: 40,000, ", f"{network.parameters:,}", "16 batch norm", "4 biases", "60.0 %",
                  "It rounds.", "path of mobile-cpu", str(some_path())):
        assert words in " ".join(done.out.split()), words
    layers = {line.split()[0]: line.split()[1:] for line in done.out.splitlines() if line.split()[:1] in (["stem"], ["body"])}
    assert layers == {"stem": ["4x16x16", f"{4 * 16 * 16 * 27:,}", "3x3/2"], "body": ["4x16x16", f"{4 * 16 * 16 * 36:,}", "3x3"]}


def test_only_some(tiny):
    assert [row["name"] for row in hwnas("networks", "--only", " tiny-narrow,tiny-wide", "--json").json] == [
        "tiny-wide", "tiny-narrow"]
    assert [row["name"] for row in hwnas("networks", "tiny-narrow", "--json").json] == ["tiny-narrow"]


# Timed here


def test_a_ranking_is_printed_drawn_and_kept(tiny, tmp_path):
    arguments = ("networks", "--device", DEVICE, "--output", tmp_path / "ranking.json")
    done = hwnas(*arguments, "--plot", tmp_path / "ranking.png")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    rows = {line.split()[0]: line for line in lines if line.startswith("tiny-")}
    assert list(rows)[-1] == "tiny-wide" and set(rows) == set(TINY)
    assert {name for name, line in rows.items() if "*" in line} == {"tiny-narrow", "tiny-wide"}
    assert lines[-1].startswith("* Best of 2, ") and "tiny-wide (70.0 % in " in lines[-1] and "not measured here" in lines[-1]
    assert (tmp_path / "ranking.png").read_bytes().startswith(b"\x89PNG")
    content = (tmp_path / "ranking.json").read_bytes()

    again = hwnas(*arguments, "--plot", tmp_path / "ranking.html", "--json")
    assert again.code == 0 and (tmp_path / "ranking.json").read_bytes() == content  # nothing was measured again
    assert json.loads(content)["anchor"]["name"] == "mobile-224/1"  # like the published networks, whatever these are
    kept = {network["name"]: network for network in json.loads(content)["networks"]}
    for row in again.json:
        assert {"name", "macs", "parameters", "published"} <= set(row)
        assert row["lower_ms"] < row["latency_ms"] == kept[row["name"]]["latency_ms"] < row["upper_ms"]
    assert {file.name for file in tmp_path.iterdir()} == {"ranking.json", "ranking.png", "ranking.html"}


def test_what_time_was_over_for_is_told(tiny, tmp_path):
    arguments = ("networks", "--device", DEVICE, "--output", tmp_path / "ranking.json", "--json")
    assert len(hwnas(*arguments, "--only", "tiny-narrow").json) == 1
    done = hwnas(*arguments, "--max-minutes", 0)
    assert done.code == 0 and "The time was over before tiny-wide, tiny-unjudged had every session" in done.err
    assert [(row["name"], row["latency_ms"] is None) for row in done.json] == [
        ("tiny-narrow", False), ("tiny-wide", True), ("tiny-unjudged", True)]


# Mistakes


@pytest.mark.parametrize(("arguments", "told"), [
    (("tiny-wade",), "did you mean tiny-wide"),
    (("--only", "tiny-wide,nonsense"), "'hwnas networks' lists them"),
    (("--only", " , "), "--only takes names"),
    (("tiny-wide", "--only", "tiny-wide"), "give one of them"),
    (("--plot", "ranking.png"), "add --device"),
    (("--output", "ranking.json"), "add --device"),
    (("--restart",), "add --device"),
    (("--device", DEVICE, "--plot", "ranking.bmp"), ".png"),
    (("--device", "toaster"), "choose one of"),
    (("--device", DEVICE, "--threads", 0), "threads"),
    (("--device", DEVICE, "--precision", "fp3"), "fp32"),
    (("--device", DEVICE, "--max-minutes", 0), "--max-minutes"),
])
def test_mistakes_are_told_before_anything_is_measured(tiny, arguments, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert told in refused(hwnas("networks", *arguments))
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_what_is_not_installed_exits_with_5(tiny, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert "pip install openvino" in refused(hwnas("networks", "--device", "openvino-cpu"), 5)
    monkeypatch.setitem(sys.modules, "plotly", None)
    assert "pip install 'hwnas[report]'" in refused(hwnas("networks", "--device", DEVICE, "--plot", "ranking.html"), 5)
    assert not list(tmp_path.iterdir())


# Elsewhere

TABLE = Path(__file__).parents[2] / "latency_tables/amd-epyc-26-2-1/onnxruntime-cpu-fp32-1t/spos.json"


def test_a_network_is_predicted_from_the_table_of_its_space():
    (row,) = hwnas("predict", "--table", TABLE, "--network", "spos-block-search", "--json").json
    assert 0 < row["lower_ms"] < row["latency_ms"] < row["upper_ms"]
    assert row["architecture"]["choices"]["stage1_1"] == "shuffle_7x7"  # id 2, the released vector's first
    said = refused(hwnas("predict", "--table", TABLE, "--network", "mobilenet-v2-1.0"))
    assert "'mobilenet-v2-1.0' is of no search space" in said and "hwnas networks --device" in said
    said = refused(hwnas("predict", "--table", TABLE, "--network", "fbnet-b-paper"))
    assert "'fbnet-b-paper' is a path of space 'fbnet'" in said
    assert "--random N" in refused(hwnas("predict", "--table", TABLE, "--network", "spos-block-search", "--random", 2))


def test_a_network_is_exported_with_random_weights(tmp_path):
    done = hwnas("export", "--network", "shufflenet-v2-0.5", "--output", tmp_path / "artefact", "--json")
    assert done.code == 0, done.err
    manifest = done.json
    assert (manifest["macs"], manifest["name"]) == (40_476_448, "shufflenet-v2-0.5")
    assert hwnas("verify", tmp_path / "artefact").code == 0
    other = ("--output", tmp_path / "other")
    assert "did you mean shufflenet-v2-0.5" in refused(hwnas("export", "--network", "shufflenet-v2-0.4", *other))
    assert "--network NAME" in refused(hwnas("export", "--network", "shufflenet-v2-0.5", "--space", "spos", *other))
