"""The picture of a table: a valid file of every format, with every layer and network that belongs there."""

import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from hwnas.errors import InputError
from hwnas.ir.blocks import ConvBlock, Head, Identity, Resolution, Stem
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.ir.trellis import Trellis
from hwnas.latency.refusals import network_key
from hwnas.latency.table import AnchorRecord, EntryRecord, LatencyTable, NetworkRecord
from hwnas.report.table import draw_table

ENVIRONMENT = {"device": "Acme 3000", "runtime": "onnxruntime-cpu", "runtime_version": "1.0", "precision": "fp32", "threads": 2}
SPACE = SearchSpace("toy", (3, 16, 16), (
    Decision("size", {"r16": Resolution(16), "r32": Resolution(32)}),
    Fixed("stem", Stem(8)),
    Decision("first", {"small": ConvBlock(8), "large": ConvBlock(96), "none": Identity()}),
    Decision("second", {"small": ConvBlock(8), "large": ConvBlock(96), "none": Identity()}),
    Fixed("head", Head(10))))
ROLES = ("held_out", "fit", "held_out", "exported")


def table(networks=24, spread=1.0):
    """Costs grow with MACs, `spread` from each other, and every network takes half a millisecond more."""
    entries = {key: EntryRecord(sessions=((0.3 + spread * part.network.macs / 1e6,),), label="ok")
               for key, part in SPACE.measured_parts.items()}
    bare = LatencyTable(SPACE, ENVIRONMENT, AnchorRecord(name="a", sha256="0" * 64, sessions_ms=(1.0,)), entries, ())
    generator = np.random.default_rng(0)
    return bare.with_networks([
        NetworkRecord(choices=dict(one.choices), role=ROLES[number % 4],
                      sessions=(((0.5 + bare.predict(one).latency_ms) * generator.normal(1, 0.02),),))
        for number, one in enumerate(Trellis(SPACE).sample(networks, seed=0) if networks else [])])


@pytest.mark.parametrize("spread, networks", [(1.0, 24), (0.01, 24), (1.0, 1), (1.0, 0)], ids=["wide", "narrow", "one", "none"])
def test_a_png_is_a_picture(spread, networks, tmp_path):
    path = draw_table(table(networks, spread), tmp_path / "deep" / "table.png")
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        image.verify()
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape[0] > 600 and pixels.shape[1] > (1500 if networks else 900)
    assert 0.005 < (pixels < 200).mean() < 0.3  # neither blank nor black
    assert [file.name for file in path.parent.iterdir()] == ["table.png"]


def test_an_svg_names_what_was_drawn(tmp_path):
    """matplotlib draws text as outlines, and says in a comment what they spell."""
    drawn = table()
    text = draw_table(drawn, tmp_path / "table.svg").read_text()
    counts = {role: ROLES.count(role) * 6 for role in set(ROLES)}
    for words in ("toy on Acme 3000, onnxruntime-cpu 1.0, fp32, 2 threads", "first", "second", "stem (fixed)", "head (fixed)",
                  "small", "large", "none", "(every network)", f"{counts['fit']} that calibrate",
                  f"{counts['held_out']} that judge, unseen by the fit", f"{counts['exported']} exported, in the fit too",
                  "predicted = measured", f"95 % interval, ± {100 * drawn.held_out.interval:.1f} %"):
        assert f"<!-- {words} -->" in text, words
    assert f"mean error {100 * drawn.held_out.mean_error:.1f} %" in text
    assert "<!-- size -->" not in text  # takes no time


def test_a_page_holds_the_tables_own_figures_and_fetches_nothing(tmp_path):
    drawn = table()
    text = draw_table(drawn, tmp_path / "table.html").read_text()
    assert not re.search(r"<(script|link)[^>]*(src|href)=", text)
    data = text[text.rindex("Plotly.newPlot("):]
    traces = json.loads(re.search(r"\[\{.*?\}\](?=,\s*\{)", data, re.DOTALL).group())
    names = {trace["name"] for trace in traces}
    assert {"small", "large", "none", "fixed layers", "mean of the options", "predicted = measured"} <= names
    held_out = next(trace for trace in traces if trace["name"].endswith("that judge, unseen by the fit"))
    assert len(held_out["hovertext"]) == 12 and all("error" in words for words in held_out["hovertext"])
    dearest = max(float(words.split("<br>")[1].split(" to ")[-1].split(" ms")[0]) for trace in traces if trace["name"] == "large"
                  for words in trace["hovertext"])
    assert dearest == pytest.approx(max(drawn.edge_cost(edge) for edge in SPACE.steps[3].edges), rel=1e-3)


def test_what_nothing_has_judged_says_so(tmp_path):
    for name in ("table.svg", "table.html"):
        assert "no network has judged how far the sum of the blocks is off" in draw_table(table(0), tmp_path / name).read_text()
    assert "that calibrate" not in (tmp_path / "table.svg").read_text()


def test_an_imported_or_incomplete_table_is_drawn(tmp_path):
    whole = table(0)
    bare = replace(whole, environment={"device": "a phone", "runtime": "imported"},
                   entries=dict(list(whole.entries.items())[1:-1]))
    assert "<!-- toy on a phone, imported -->" in draw_table(bare, tmp_path / "table.svg").read_text()


def test_a_table_with_refused_blocks_is_drawn(tmp_path):
    whole = table()
    large = {key: "It crashes." for key in whole.entries if "out_channels=96" in key}
    drawn = replace(whole, refused=large)
    for name in ("table.svg", "table.html"):
        assert f"{len(large)} blocks refused and left out" in draw_table(drawn, tmp_path / name).read_text()
    text = (tmp_path / "table.svg").read_text()
    assert "<!-- small -->" in text and "<!-- large -->" not in text
    network = network_key(SPACE.any_architecture)
    replaced = draw_table(replace(whole, refused={network: "It crashes."}), tmp_path / "network.svg").read_text()
    assert "refused" not in replaced and "<!-- large -->" in replaced
    bare = replace(whole, refused=dict.fromkeys(whole.entries, "It crashes."))
    assert "<!-- small -->" not in draw_table(bare, tmp_path / "none.svg").read_text()


def test_a_table_of_estimates_says_so(tmp_path):
    whole = table()
    first, second, *_ = whole.entries
    entries = {key: entry.model_copy(update={"label": "estimated"}) if key in (first, second) else entry
               for key, entry in whole.entries.items()}
    some = replace(whole, entries=entries)
    drawn, all_measured = (draw_table(one, tmp_path / "table.svg").read_text() for one in (some, whole))
    assert "; 2 blocks estimated from the others" in drawn and "estimated" not in all_measured


def test_a_fit_through_one_network_is_drawn(tmp_path):
    """Prediction and measurement are one number, so the picture has no range of its own."""
    record = table(1).networks[0].model_copy(update={"role": "fit"})
    assert "<!-- 1 that calibrate -->" in draw_table(table(0).with_networks([record]), tmp_path / "table.svg").read_text()


def test_more_options_than_colours(tmp_path):
    options = {f"w{width}": ConvBlock(width) for width in range(1, 31)}
    space = SearchSpace("many", (3, 8, 8), (Decision("only", options), Fixed("head", Head(10))))
    entries = {key: EntryRecord(sessions=((1.0 + number,),), label="ok") for number, key in enumerate(space.measured_parts)}
    drawn = LatencyTable(space, ENVIRONMENT, AnchorRecord(name="a", sha256="0" * 64, sessions_ms=(1.0,)), entries, ())
    assert "<!-- other options -->" in draw_table(drawn, tmp_path / "table.svg").read_text()


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"one of \.png"):
        draw_table(table(0), tmp_path / "table.bmp")
    assert not list(tmp_path.iterdir())
