"""`hwnas spaces`: what people read of layers, cells and conditions, the picture, and the document that scripts read."""

import re
import sys

import pytest

from hwnas.ir.costs import MacsCost
from hwnas.ir.trellis import Trellis
from hwnas.spaces import SPACES
from tests.cli.command import hwnas, refused


@pytest.fixture(autouse=True)
def wide(monkeypatch):
    """Whatever the tests run in: no line is folded."""
    monkeypatch.setattr("hwnas.cli.console.stdout.width", 200)


def test_json_holds_exact_figures_of_every_space():
    found = hwnas("spaces", "--json").json
    assert [one["name"] for one in found] == list(SPACES)
    for one in found:
        assert list(one) == ["name", "decisions", "size", "input_shape", "macs_min", "macs_max", "blocks"]
        assert all(isinstance(one[key], int) for key in ("decisions", "size", "macs_min", "macs_max", "blocks"))
    space = SPACES["ofa-cpu"]()
    (one,) = (one for one in found if one["name"] == "ofa-cpu")
    counts = [space.network(path).macs for path in Trellis(space, MacsCost()).sample(200, seed=0)]
    parts = [part for path in Trellis(space, MacsCost()).sample(2000, seed=0) for edge in space.path(path) for part in edge.parts]
    assert one["blocks"] == len({part.workload for part in parts if not part.block.is_free})
    assert one["size"] == space.size and one["macs_min"] <= min(counts) and max(counts) <= one["macs_max"]


def test_people_see_every_layer(space):
    told = hwnas("spaces", space).out
    assert re.search(r"^stem +\(stem\) .* 8x8x8 *$", told, re.MULTILINE)
    assert re.search(r"^body +narrow wide .* 8 to 24 channels, 4x4 *$", told, re.MULTILINE)
    assert re.search(r"^tail +k3 k5 .* 16x4x4 *$", told, re.MULTILINE)
    assert "not after" not in told


def test_many_options_are_counted():
    told = hwnas("spaces", "spos-blocks-channels").out
    assert re.search(r"shuffle_3x3_x02 .* \.\.\. xception_x20, 40 options", told)
    assert max(map(len, told.splitlines())) <= 200


def test_conditions_are_marked():
    told = hwnas("spaces", "ofa-mobilenet-v3").out
    assert "k3_e3* " in told and "skip*" not in told and "\n* not after every choice before it" in told


def test_cells_are_told_by_stack_and_decisions():
    told = hwnas("spaces", "darts-cpu").out
    assert re.search(r"^cell1 +1 +normal +1 +8x16x16", told, re.MULTILINE)
    assert re.search(r"^cell2 +1 +reduction +2 +16x8x8", told, re.MULTILINE)
    assert re.search(r"^normal_3_inputs +3 +0-1 0-2 1-2 ", told, re.MULTILINE)
    assert "Decisions of reduction" in told and "states 2, 3, 4, 5" in told
    assert "_Progress" not in told and "options follow" not in told


def test_a_picture_beside_the_listing(space, architecture, tmp_path):
    done = hwnas("spaces", space, "--plot", tmp_path / "space.svg", "--architecture", architecture)
    assert done.code == 0 and "narrow wide" in done.out and str(tmp_path / "space.svg") in done.err
    text = (tmp_path / "space.svg").read_text()
    assert all(f"<!-- {option} -->" in text for option in ("narrow", "wide", "k3", "k5", "body", "tail"))
    assert text.count("stroke: #1f4fd8") == 2
    assert hwnas("spaces", space, "--plot", tmp_path / "space.png", "--json").json[0]["size"] == 4


@pytest.mark.parametrize(("arguments", "word"), [
    (("--plot", "all.png"), "give its name"),
    (("mobile-cpu", "--plot", "space.bmp"), ".png, .svg, .pdf"),
    (("nothing-of-this-name", "--plot", "space.bmp"), ".png, .svg, .pdf"),  # before the space is looked for
    (("mobile-cpu", "--architecture", "best.json"), "--plot"),
    (("mobile-cpu", "--plot", "space.png", "--architecture", "gone.json"), "gone.json")])
def test_what_cannot_be_drawn_is_refused(arguments, word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert word in refused(hwnas("spaces", *arguments))
    assert not list(tmp_path.iterdir())


def test_an_architecture_of_another_space_is_refused(architecture, tmp_path):
    assert "space" in refused(hwnas("spaces", "mobile-cpu", "--plot", tmp_path / "space.png", "--architecture", architecture))
    assert not list(tmp_path.iterdir())


def test_without_matplotlib_there_is_no_picture(space, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install matplotlib" in refused(hwnas("spaces", space, "--plot", tmp_path / "space.png"), code=5)
