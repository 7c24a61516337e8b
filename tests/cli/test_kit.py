"""`hwnas kit`: from a space to a folder, from the folder's results to a table that other verbs use."""

import json
import math

import pytest

from tests.cli.command import hwnas, refused
from tests.cli.conftest import DEVICE

pytest.importorskip("onnxruntime")

NETWORKS = ("--fit-networks", 1, "--held-out-networks", 1)


def test_build_says_what_is_in_it(measured_kit):
    kit, said = measured_kit
    size = sum(path.stat().st_size for path in kit.rglob("*") if path.is_file() and path.name != "results.jsonl")
    assert said == {"kit": str(kit), "blocks": 2, "networks": 2, "refused": 0, "sessions": 10, "size_bytes": size}


def test_build_tells_people_what_to_do_next(atom, tmp_path):
    done = hwnas("kit", "build", "--device", DEVICE, "--space", atom, "--output", tmp_path / "kit", *NETWORKS)
    assert done.code == 0 and "python run.py" in done.out and "MiB" in done.out and "10; timing" in done.out
    assert (tmp_path / "kit" / "README.md").exists()


def test_the_collected_table_predicts(measured_kit, tmp_path):
    table = tmp_path / "table.json"
    done = hwnas("kit", "collect", measured_kit[0], "--output", table, "--json")
    assert done.code == 0 and done.err == "", done.err
    assert {key: done.json[key] for key in ("table", "entries", "missing", "refused", "missing_sessions")} == {
        "table": str(table), "entries": 2, "missing": 0, "refused": 0, "missing_sessions": 0}
    assert done.json["held_out"]["networks"] == 1 and done.json["anchor_ms"] > 0
    predicted = hwnas("predict", "--table", table, "--random", 2, "--json").json
    assert len(predicted) == 2 and all(0 < row["latency_ms"] < math.inf for row in predicted)


def test_collect_tells_people_about_the_table(measured_kit, tmp_path):
    done = hwnas("kit", "collect", measured_kit[0], "--output", tmp_path / "table.json")
    assert done.code == 0 and "95 % interval" in done.out and "0 refused, 0 missing" in done.out


def test_an_unfinished_kit_makes_a_table_and_says_what_is_missing(measured_kit, tmp_path):
    lines = (measured_kit[0] / "results.jsonl").read_text().splitlines(keepends=True)
    results = tmp_path / "results.jsonl"
    results.write_text("".join(lines[:2]) + lines[2][:40])
    done = hwnas("kit", "collect", measured_kit[0], "--results", results, "--output", tmp_path / "table.json", "--json")
    assert done.code == 0 and done.json["entries"] == 1 and done.json["missing"] == 1 and done.json["missing_sessions"] == 9
    assert "9 session(s) are to go" in done.err and "--overwrite" in done.err
    effort = json.loads((tmp_path / "table.json").read_text())["effort"]
    assert effort["sessions"] == 1 and effort["planned_sessions"] == 10


@pytest.mark.parametrize(("arguments", "words"), [
    (("--device", "abacus"), "no runtime 'abacus'"),
    (("--precision", "int3"), "'int3'"),
    (("--seed", -1), "seed"),
    (("--space", "nowhere"), "nowhere"),
], ids=lambda value: value[0] if isinstance(value, tuple) else "")
def test_mistakes_in_building_are_told(arguments, words, atom, tmp_path):
    given = {"--device": DEVICE, "--space": atom, "--output": tmp_path / "kit"} | {arguments[0]: arguments[1]}
    assert words in refused(hwnas("kit", "build", *(one for pair in given.items() for one in pair)))
    assert not list(tmp_path.iterdir())


def test_nothing_is_replaced_unasked(measured_kit, atom, tmp_path):
    kit, _ = measured_kit
    assert "--overwrite" in refused(hwnas("kit", "build", "--device", DEVICE, "--space", atom, "--output", kit, *NETWORKS))
    table = tmp_path / "table.json"
    assert hwnas("kit", "collect", kit, "--output", table).code == 0
    before = table.read_bytes()
    assert "--overwrite" in refused(hwnas("kit", "collect", kit, "--output", table))
    assert table.read_bytes() == before
    assert hwnas("kit", "collect", kit, "--output", table, "--overwrite").code == 0


def test_mistakes_in_collecting_are_told(atom, tmp_path):
    assert "cannot be read" in refused(hwnas("kit", "collect", tmp_path / "none", "--output", tmp_path / "table.json"))
    kit = tmp_path / "kit"
    assert hwnas("kit", "build", "--device", DEVICE, "--space", atom, "--output", kit, *NETWORKS).code == 0
    assert "run.py" in refused(hwnas("kit", "collect", kit, "--output", tmp_path / "table.json"))
