"""`hwnas table`: what it shows is what the table holds; nothing is replaced unasked; damage exits with 4."""

import csv
import json
import pickle  # noqa: TID251 -- to make what must be refused
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from hwnas.latency.refusals import network_key
from hwnas.latency.table import EffortRecord, EntryRecord, load_table
from tests.cli.command import hwnas, hwnas_process, refused
from tests.cli.conftest import DEVICE

IMPORT = ("--space", "proxyless", "--device", "d", "--output", "o")
COMMITTED = {path.stem: path for path in sorted((Path(__file__).parents[2] / "latency_tables").rglob("*.json"))}  # one of a space


@pytest.fixture
def copy(table, tmp_path):
    return Path(shutil.copy(table, tmp_path / "table.json"))


@pytest.mark.parametrize("path", COMMITTED.values(), ids=COMMITTED)
def test_a_committed_table(path):
    """Sound, judged, and shown as it is."""
    assert hwnas("table", "check", path, "--space", path.stem, "--json").json["additive"] in (True, False)
    shown = hwnas("table", "show", path, "--top", 10_000, "--json").json
    stored = json.loads(path.read_text())
    assert shown["environment"] == stored["environment"] and shown["entries"]["count"] == len(stored["entries"])
    assert shown["held_out"]["networks"] == stored["held_out"]["networks"] and shown["bytes"] == path.stat().st_size
    assert 0 <= shown["held_out"]["within_2_percent"] <= shown["held_out"]["within_5_percent"] <= 1
    costs = [row["latency_ms"] for row in shown["costliest"]]
    assert len(costs) == len(stored["entries"]) and costs == sorted(costs, reverse=True)
    for row in shown["costliest"]:
        entry = stored["entries"][f"{row['block']} @ {row['input_shape']}"]
        assert row["isolated_ms"] == pytest.approx(entry["ratio"] * stored["anchor"]["latency_ms"])
        assert row["label"] == "estimated" or row["isolated_lower_ms"] < row["isolated_ms"] < row["isolated_upper_ms"]


def test_people_are_told_what_it_is(table):
    told = hwnas("table", "show", table).out
    for words in ("Latency table of tiny", "onnxruntime-cpu", "anchor", "judged on", "95 % interval", "additive", "dearest"):
        assert words in told, words


def test_the_anchors_spread_and_clock_are_shown(copy):
    loaded = load_table(copy)
    assert hwnas("table", "show", copy, "--json").json["anchor"]["clock_mhz"] is None
    assert "MHz" not in hwnas("table", "show", copy).out
    changed = {"sessions_ms": (*[0.5] * 90, *[0.75] * 10), "clocks_mhz": (1755, 1980, 1980)}
    replace(loaded, anchor=loaded.anchor.model_copy(update=changed)).save(copy)
    shown = hwnas("table", "show", copy, "--json").json["anchor"]
    assert shown["spread_ms"] == [0.5, 0.75] and shown["clock_mhz"] == [1755, 1980, 1980]
    told = " ".join(hwnas("table", "show", copy).out.split())
    assert "5th to 95th percentile 0.5000 to 0.7500 ms" in told and "1980 MHz in the median, 1755 to 1980 MHz" in told
    assert "0.5 to 0.75 ms" in " ".join(hwnas("table", "check", copy).out.split())


def test_a_table_and_itself(table):
    found = hwnas("table", "diff", table, table, "--json").json
    assert found["environment"] == [] and found["changed"] == [] and found["median_change"] == 0 and found["same_space"]


def test_a_changed_table(table, tmp_path):
    loaded = load_table(table)
    first, second, *_ = loaded.entries
    steady, dearer = (EntryRecord(sessions=((ratio,),), label="ok") for ratio in (1.0, 3.0))
    table = replace(loaded, entries={**loaded.entries, first: steady}).save(tmp_path / "a.json")
    entries = {key: entry for key, entry in loaded.entries.items() if key != second} | {first: dearer}
    changed = replace(loaded, entries=entries, environment={**loaded.environment, "threads": 9}, networks=())
    other = changed.save(tmp_path / "b.json")
    done = hwnas("table", "diff", table, other, "--json")
    assert done.code == 0 and done.json["only_in_first"] == [second] and done.json["only_in_second"] == []
    assert [(row["workload"], round(row["relative"], 6)) for row in done.json["changed"]] == [(first, 2.0)]
    assert done.json["environment"] == [{"key": "threads", "first": 1, "second": 9}]
    told = hwnas("table", "diff", table, other).out
    assert "threads" in told and "+200.0" in told


# Checks

@pytest.mark.parametrize("damage", [lambda text: text[:-300], lambda text: text.replace('"threads": 1', '"threads": 2'),
                                    lambda text: "{}", lambda text: "no JSON"], ids=["truncated", "edited", "empty", "text"])
def test_damage_exits_with_4(damage, copy):
    copy.write_text(damage(copy.read_text()))
    before = copy.read_bytes()
    assert str(copy) in refused(hwnas("table", "check", copy), 4)
    assert str(copy) in refused(hwnas("table", "check", copy, "--json"), 4)
    assert copy.read_bytes() == before
    for verb in (("show", copy), ("diff", copy, copy), ("export", copy, "--format", "csv", "--output", copy.with_name("x.csv"))):
        refused(hwnas("table", *verb), 2)
    assert not copy.with_name("x.csv").exists()


def test_what_is_missing_exits_with_4(table, copy, atom):
    loaded = load_table(copy)
    first, *rest = loaded.entries
    replace(loaded, entries={key: loaded.entries[key] for key in rest}, networks=()).save(copy)
    assert first in refused(hwnas("table", "check", copy), 4)
    assert hwnas("table", "show", copy, "--json").json["entries"]["missing"] == 1
    assert "'atom'" in refused(hwnas("table", "check", table, "--space", atom), 4)


def test_another_environment_is_a_warning(copy):
    loaded = load_table(copy)
    assert "environment" not in " ".join(hwnas("table", "check", copy, "--device", DEVICE, "--json").json["warnings"])
    replace(loaded, environment={**loaded.environment, "device": "Abacus 3000"}).save(copy)
    done = hwnas("table", "check", copy, "--device", DEVICE, "--json")
    assert done.code == 0 and any("device is 'Abacus 3000' there and" in one for one in done.json["warnings"])
    assert "Abacus" in hwnas("table", "check", copy, "--device", DEVICE).out


def test_a_real_process_exits_with_4(copy):
    copy.write_text("{}")
    done = hwnas_process("table", "check", copy)
    assert done.code == 4 and done.out == "" and done.err.count("\n") == 1


# Refused blocks

@pytest.fixture
def refusing(table, tmp_path):
    """A table whose runtime refuses the wide body, and which is not complete."""
    loaded = load_table(table)
    wide = next(workload for workload in loaded.entries if "out_channels=24" in workload)
    effort = EffortRecord(minutes=2.0, timing_minutes=1.5, sessions=300, planned_sessions=491)
    path = tmp_path / "refusing.json"
    replace(loaded, refused={wide: "It [crashes]."}, effort=effort,
            entries={key: entry for key, entry in loaded.entries.items() if key != wide}).save(path)
    return path


def test_refused_blocks_are_listed(refusing):
    blocks = len(load_table(refusing).entries) + 1
    for verb, columns in (("show", 2), ("check", 2)):
        done = hwnas("table", verb, refusing)
        assert done.code == 0 and f"1 of {blocks} blocks are refused by {DEVICE}" in done.err and "body wide" in done.err
        assert done.err.count("\n") == 1 and done.out.count("It [crashes].") == 1 and "conv(out_channels=24" in done.out
        (row,) = hwnas("table", verb, refusing, "--json").json["refused"]
        assert len(row) == columns and row["reason"] == "It [crashes]." and "out_channels=24" in row["workload"]
    shown = hwnas("table", "show", refusing, "--json").json
    assert shown["entries"]["refused"] == 1 and shown["entries"]["missing"] == 0
    assert {"layer": "body", "option": "wide", "reason": "It [crashes]"} in shown["excluded_options"]
    told = hwnas("table", "show", refusing, "--plot", refusing.with_name("p.svg"))
    assert told.code == 0 and "refused and left out" in refusing.with_name("p.svg").read_text()


def test_whole_networks_that_are_refused_are_told_and_are_no_blocks(table, space, copy):
    loaded = load_table(copy)
    network = loaded.search_space.architecture({"body": "wide", "tail": "k3"})
    replace(loaded, refused={network_key(network): "It [crashes]."}).save(copy)
    known = f"{DEVICE} refuses 1 whole network(s) though it runs each of their blocks, the first being wide k3 (It [crashes])"
    done = hwnas("table", "show", copy, "--json").json
    assert done["refused_networks"] == [{"network": "wide k3", "reason": "It [crashes]."}]
    assert done["refused"] == [] == done["excluded_options"] and done["entries"]["refused"] == 0
    told = hwnas("table", "show", copy)
    assert "wide k3" in told.out and "It [crashes]." in told.out and "refused, though each of their blocks runs" in told.out
    checked = hwnas("table", "check", copy, "--json")
    assert checked.code == 0 and checked.err == "" and checked.json["refused"] == []
    assert any(one.startswith(known) for one in checked.json["warnings"])
    profile = ("profile", "--device", DEVICE, "--space", space, "--output", copy)
    done = hwnas(*profile, "--json")
    assert f"Warning: {known}" in done.err and done.json["refused"] == {}
    assert done.json["refused_networks"] == {"wide k3": "It [crashes]."}
    assert "0 refused" in hwnas(*profile).out
    assert "refuses" not in hwnas("feasible", "--table", copy, "--json").err  # it is none of the verbs that leave something out


def test_effort_is_told(refusing, table):
    done = " ".join(hwnas("table", "show", refusing).out.split())  # a long path above may narrow the column
    assert "300 of 491 sessions in 2.0 min, 75 % of it timing, 150 sessions a minute" in done
    assert "incomplete" in done and "the same 'hwnas profile' command completes the table" in done
    shown = hwnas("table", "show", refusing, "--json").json["effort"]
    assert shown["sessions"] == 300 and shown["complete"] is False
    assert hwnas("table", "check", refusing, "--json").json["complete"] is False
    whole = replace(load_table(refusing), effort=EffortRecord(minutes=0, timing_minutes=0, sessions=2, planned_sessions=2))
    whole.save(refusing)
    done = hwnas("table", "show", refusing).out
    assert "2 of 2 sessions in 0.0 min" in done and "incomplete" not in done


def test_verbs_leave_out_what_is_refused(refusing, supernet, tmp_path):
    known = f"blocks are refused by {DEVICE}"
    found = hwnas("feasible", "--table", refusing, "--max-latency-ms", 1000, "--json")
    assert known in found.err and found.json["size"] == 4 and found.json["budgets"][0]["count"] == 2
    assert "2 of 4 networks" in hwnas("feasible", "--table", refusing).out
    rows = hwnas("predict", "--table", refusing, "--random", 30, "--json")
    assert known in rows.err and {row["architecture"]["choices"]["body"] for row in rows.json} == {"narrow"}
    assert all(row["latency_ms"] <= found.json["feasible_range_ms"][1] * 1.0001 for row in rows.json)
    done = hwnas("search", "--supernet", supernet, "--table", refusing, "--max-latency-ms", 1000, "--output", tmp_path / "search",
                 "--population", 4, "--generations", 1, "--parents", 2, "--calibration-images", 40, "--json")
    assert known in done.err and done.json["best"]["choices"]["body"] == "narrow"


def test_a_network_with_a_refused_block_is_refused(refusing, architecture):
    told = refused(hwnas("predict", "--table", refusing, "--architecture", architecture))
    assert "option 'wide' of decision 'body'" in told and "It [crashes]" in told
    loaded = load_table(refusing)
    stem = next(iter(loaded.entries))
    replace(loaded, refused={**loaded.refused, stem: "No."}).save(refusing)
    assert "'stem'" in refused(hwnas("feasible", "--table", refusing), 3)


# Files

def test_a_picture(table, tmp_path):
    path = tmp_path / "table.png"
    done = hwnas("table", "show", table, "--plot", path, "--json")
    assert done.code == 0 and "Drawn" in done.err and done.json["space"] == "tiny"
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG") and "--overwrite" in refused(hwnas("table", "show", table, "--plot", path))
    assert path.read_bytes() == content and hwnas("table", "show", table, "--plot", path, "--overwrite").code == 0
    assert ".png" in refused(hwnas("table", "show", table, "--plot", tmp_path / "table.bmp"))


def test_exports_and_what_comes_back(table, space, tmp_path):
    export = ("table", "export", table, "--format")
    assert hwnas(*export, "csv", "--output", tmp_path / "t.csv").code == 0
    assert hwnas(*export, "json", "--output", tmp_path / "t.json").code == 0
    with open(tmp_path / "t.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(json.loads((tmp_path / "t.json").read_text())["entries"]) == len(load_table(table).entries)
    done = hwnas("table", "import", tmp_path / "t.csv", "--format", "hwnasbench-csv", "--unit", "ms", "--column", "isolated_ms",
                 "--space", space, "--device", "Abacus", "--output", tmp_path / "imported.json", "--json")
    assert done.code == 0 and done.json["entries"] == len(rows) and done.json["unused"] == 0
    imported = tmp_path / "imported.json"
    warnings = hwnas("table", "check", imported, "--json").json["warnings"]
    assert len(warnings) == 2 and "imported" in warnings[0] and "No network has judged" in warnings[1]
    assert "imported from" in hwnas("table", "show", imported).out
    difference = hwnas("table", "diff", table, imported, "--json").json
    assert difference["unit"] == "ms" and difference["unknown_intervals"] == len(rows) and difference["changed"] == []
    assert abs(difference["median_change"]) < 1e-9
    assert hwnas("feasible", "--table", imported, "--max-latency-ms", 1000).code == 0  # and it is a table like any other
    refused(hwnas("profile", "--device", DEVICE, "--space", space, "--output", imported))  # but never mixed with measurements


def test_nothing_is_replaced_unasked(table, copy, space):
    there = copy.with_name("there.csv")
    there.write_text("mine")
    before = copy.read_bytes()
    export = ("table", "export", copy, "--format", "csv", "--output")
    imports = ("table", "import", there, "--format", "hwnasbench-csv", "--unit", "ms", "--space", space, "--device", "a",
               "--output")
    assert "--overwrite" in refused(hwnas(*export, there))
    assert "--overwrite" in refused(hwnas(*imports, copy))
    for arguments, source in ((export, copy), (imports, there)):  # nor the source, asked or not
        assert "another name" in refused(hwnas(*arguments, source, "--overwrite"))
        assert "another name" in refused(hwnas(*arguments, copy.parent, "--overwrite"))
    assert there.read_text() == "mine" and copy.read_bytes() == before
    assert hwnas(*export, there, "--overwrite").code == 0 and there.read_text().startswith("block,")
    assert {one.name for one in copy.parent.iterdir()} == {"table.json", "there.csv"}


@pytest.mark.parametrize("arguments, word", [
    (("table", "export", "{table}", "--format", "pickle", "--output", "o"), "csv or json"),
    (("table", "import", "f.yaml", "--format", "ofa-yaml", *IMPORT), "--unit"),
    (("table", "import", "f.yaml", "--format", "ofa-yaml", "--unit", "h", *IMPORT), "us, ms, s"),
    (("table", "import", "f.yaml", "--format", "xls", "--unit", "ms", *IMPORT), "ofa-yaml"),
    (("table", "import", "f.yaml", "--format", "ofa-yaml", "--unit", "ms", *IMPORT), "f.yaml"),
    (("table", "import", "b.pkl", "--format", "ofa-yaml", "--unit", "ms", *IMPORT), "Pickles"),
    (("table", "show", "gone.json"), "gone.json"), (("table", "check", "gone.json"), "gone.json"),
    (("table", "check", "{table}", "--space", "spas"), "spas"), (("table", "check", "{table}", "--device", "abacus"), "abacus"),
    (("table", "diff", "{table}", "gone.json"), "gone.json"), (("table", "show", "{table}", "--top", "-1"), "top"),
    (("table", "sho", "{table}"), "sho"), (("table", "check", "."), "."),
])
def test_mistakes(arguments, word, table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({}))
    done = hwnas(*[one.format(table=table) for one in arguments])
    assert done.code == 2 and done.out == "" and "Traceback" not in done.err
    assert word in done.error, done.error
    assert [one.name for one in tmp_path.iterdir()] == ["b.pkl"]


def test_a_table_is_judged_here_and_now(copy):
    """A table that says a quarter of what networks take does not hold, unless what was measured is kept."""
    loaded = load_table(copy)
    sessions = [tuple(tuple(ratio / 4 for ratio in session) for session in record.sessions) for record in loaded.networks]
    wrong = replace(loaded, networks=tuple(record.model_copy(update={"sessions": quarter})
                                           for record, quarter in zip(loaded.networks, sessions, strict=True)))
    path = wrong.save(copy.parent / "wrong.json")
    asked = ("table", "judge", path, "--networks", 4, "--sessions", 1)
    told = hwnas(*asked)
    assert told.code == 4 and "must hold on its device" in told.error and "which held for 0 of 4" in told.out
    assert load_table(path) == wrong
    found = hwnas(*asked, "--keep", "--json").json
    kept = load_table(path)
    assert found["kept"] and not found["holds"] and found["covered"] == 0 and found["median_error"] > 1
    assert kept.held_out.interval == found["interval_with_it"] > found["interval"] == wrong.held_out.interval
    assert [len(sitting.networks) for sitting in kept.sittings] == [found["networks"]] == [4]
    shown = " ".join(hwnas("table", "show", path).out.split())  # lines break where the figures' lengths have it
    assert "another hour adds" in shown and "measured in 1" in shown
    assert "other_hour" in hwnas("table", "show", path, "--json").json["networks"]
    assert "unlike" in refused(hwnas("table", "judge", path, "--device", "torch-cpu"))
