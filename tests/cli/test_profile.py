"""Which yardstick a space is profiled with, and that all that follows keeps to it."""

import json
from dataclasses import replace

import pytest

from hwnas.latency.table import load_table
from hwnas.profiling.anchor import LARGE_ANCHOR, anchor_sha256
from hwnas.profiling.device import open_device
from hwnas.profiling.kit import build_kit
from hwnas.profiling.profiler import profile_space
from hwnas.runtimes.base import RuntimeConfig
from hwnas.spaces.load import load_space
from tests.cli.command import hwnas, refused
from tests.cli.conftest import DEVICE, QUICK

LARGE = """
name: large
input_shape: [3, 128, 128]
layers:
  - {name: only, options: {k1: {kind: conv, out_channels: 4, kernel: 1, stride: 4}, k3: {kind: conv, out_channels: 4, stride: 4}}}
  - {name: head, block: {kind: head, classes: 3}}
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    path = tmp_path_factory.mktemp("large") / "large.yaml"
    path.write_text(LARGE)
    return path


@pytest.fixture(scope="module")
def profiled(large):
    path = large.with_name("table.json")
    with open_device(DEVICE, RuntimeConfig(), anchor=LARGE_ANCHOR) as device:
        profile_space(load_space(str(large)), device, path, plan=QUICK)
    return path


def test_what_a_table_is_used_for_keeps_to_its_anchor(large, profiled, tmp_path):
    assert load_table(profiled).anchor.name == LARGE_ANCHOR
    # Another anchor than the table's would be refused.
    again = hwnas("profile", "--device", DEVICE, "--space", large, "--output", profiled)
    assert again.code == 0 and "complete already" in again.err
    checked = hwnas("table", "check", profiled, "--device", DEVICE, "--json")
    assert checked.code == 0 and not any("environment" in warning for warning in checked.json["warnings"])
    exported = hwnas("export", "--space", large, "--random", 1, "--table", profiled, "--sessions", 1, "--json",
                     "--output", tmp_path / "out")
    assert exported.code == 0, exported.err
    timed = hwnas("bench", tmp_path / "out", "--sessions", 1, "--json")
    assert timed.code == 0, timed.err
    for environment in (exported.json["measurement"]["environment"], timed.json["environment"]):
        assert environment["anchor"] == anchor_sha256(LARGE_ANCHOR)
    judged = hwnas("table", "judge", profiled, "--networks", 1, "--sessions", 1, "--json")
    assert judged.code in (0, 4) and judged.json["anchor_ms"] > 0, judged.err


def test_a_kit_brings_the_anchor_along(large, tmp_path):
    build_kit(load_space(str(large)), DEVICE, tmp_path / "kit", plan=replace(QUICK, max_anchor_change=1e9))
    anchor = json.loads((tmp_path / "kit" / "kit.json").read_text())["anchor"]
    assert (anchor["name"], anchor["sha256"]) == (LARGE_ANCHOR, anchor_sha256(LARGE_ANCHOR))


def test_some_blocks_are_measured_and_the_others_said_to_be_estimates(tmp_path):
    """And every verb takes what comes of it."""
    path = tmp_path / "table.json"
    with open_device(DEVICE, RuntimeConfig()) as device:
        profile_space(load_space("fbnet-cpu"), device, path, plan=replace(QUICK, blocks=22))
    profile = ("profile", "--device", DEVICE, "--space", "fbnet-cpu", "--blocks", 22, "--output", path)
    done = hwnas(*profile)
    assert done.code == 0 and "complete already" in done.err
    blocks = len(load_space("fbnet-cpu").measured_parts)
    assert f"{blocks} ({blocks - 22} estimated, " in done.out
    again = hwnas(*profile, "--json")
    assert again.json["estimated"] == blocks - 22 and again.json["entries"] == blocks
    shown = hwnas("table", "show", path, "--json").json["entries"]
    assert (shown["count"], shown["ok"] + shown["noisy"], shown["estimated"]) == (blocks, 22, blocks - 22)
    assert 0 < shown["estimate_error"] < 1
    told = " ".join(hwnas("table", "show", path, "--top", blocks).out.split())
    assert f"{blocks - 22} estimated)" in told and "in the median, as measured blocks show that are left out" in told
    assert hwnas("table", "check", path).code == 0 and hwnas("feasible", "--table", path).code == 0
    assert hwnas("table", "export", path, "--format", "csv", "--output", tmp_path / "table.csv").code == 0
    assert (tmp_path / "table.csv").read_text().count(",estimated") == blocks - 22


def test_fewer_blocks_than_can_estimate_are_refused(tmp_path):
    said = refused(hwnas("profile", "--device", DEVICE, "--space", "fbnet-cpu", "--blocks", 3, "--output", tmp_path / "t.json"))
    assert "At least 20 blocks must be measured" in said and not (tmp_path / "t.json").exists()


def test_whoever_would_wait_long_is_told_of_a_shorter_way(tmp_path):
    profile = ("profile", "--device", DEVICE, "--space", "ofa-mobilenet-v3", "--max-minutes", 0, "--output", tmp_path / "t.json")
    assert "1,255 distinct blocks" in hwnas(*profile).err and "--blocks 200 measures" in hwnas(*profile).err
    assert "distinct blocks" not in hwnas(*profile, "--blocks", 20).err
