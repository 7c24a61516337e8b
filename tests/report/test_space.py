"""The picture of a space: a valid file of every format, with every option that can be named, and costs that are the network's."""

import io
import re
import sys

import numpy as np
import pytest
from PIL import Image

from hwnas.errors import InputError, UnavailableError
from hwnas.ir.blocks import ConvBlock, Head, Identity, MBConv, Resolution, Sequence, ShuffleUnit, Stem
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.ir.trellis import Trellis
from hwnas.report.space import SUFFIXES, check_space_picture, draw_space, short_macs
from hwnas.report.space_rows import name_runs, space_rows, span, stacked_cells, state_sources
from hwnas.spaces.darts import build_darts_cpu
from hwnas.spaces.mobile_cpu import build_mobile_cpu
from hwnas.spaces.ofa import build_ofa_cpu
from hwnas.spaces.one_shot import build_one_shot_cpu
from hwnas.spaces.spos import build_spos_blocks_channels_cpu

KERNELS = {f"k{kernel}": MBConv(24, kernel) for kernel in (3, 5)}


def small_space():
    """Widths, a condition, a resolution, a strip of many options, and an option that adds nothing."""
    return SearchSpace("small", (3, 32, 32), (
        Decision("resolution", {f"r{size}": Resolution(size) for size in (24, 32)}),
        Fixed("stem", Stem(24)),
        Decision("first", KERNELS | {"skip": Identity()}),
        Decision("second", KERNELS | {"skip": Identity()}, after=dict.fromkeys(KERNELS, tuple(KERNELS))),
        Decision("many", {f"conv_k{kernel}_width{width}_and_a_name_that_is_long": ConvBlock(width, kernel)
                          for kernel in (1, 3) for width in range(8, 68)}),
        Fixed("head", Head(10))), "Costs $5 and 10% of a_b")


def words(path):
    """matplotlib draws text as outlines, and says in a comment what they spell."""
    return re.findall(r"<!-- (.*?) -->", path.read_text())


@pytest.mark.parametrize("build", [build_mobile_cpu, build_darts_cpu, small_space], ids=lambda build: build.__name__)
def test_a_png_is_a_picture(tmp_path, build):
    path = draw_space(build(), tmp_path / "deep" / "space.png")
    with Image.open(io.BytesIO(path.read_bytes())) as image:
        image.verify()
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("L"))
    assert pixels.shape[0] > 500 and pixels.shape[1] > 800
    assert 0.005 < (pixels < 100).mean() < 0.3  # neither blank nor black
    assert [file.name for file in path.parent.iterdir()] == ["space.png"]


def test_a_pdf_is_one(tmp_path):
    assert draw_space(build_ofa_cpu(), tmp_path / "space.PDF").read_bytes().startswith(b"%PDF-")


@pytest.mark.parametrize("build", [build_mobile_cpu, build_ofa_cpu, build_darts_cpu, build_one_shot_cpu],
                         ids=lambda build: build.__name__)
def test_an_svg_names_every_layer_and_option(tmp_path, build):
    space = build()
    found = words(draw_space(space, tmp_path / "space.svg"))
    for decision in space.decisions:
        assert decision.name in found
        for option in decision.options:  # as often as there are decisions that have it
            assert found.count(option) >= sum(option in other.options for other in space.decisions)
    told = " ".join(found)
    assert space.name in found and str(space.input_shape) in told
    assert f"{space.size:,} networks" in told or (space.size >= 10**15 and f"{space.size:.3e} networks" in told)


def test_options_too_many_to_name_are_counted_and_grouped(tmp_path):
    found = words(draw_space(small_space(), tmp_path / "space.svg"))
    assert "120 options" in found
    assert not any(word.endswith("_long") for word in found)
    assert any(word.startswith("conv_k1") for word in found) and any(word.startswith("conv_k3") for word in found)
    assert "Dashed: not after every choice before it. Strips: options too many to be named, in their order." in found
    assert any("Costs $5 and 10% of a_b" in word for word in found)  # no formula


def test_a_path_is_framed(tmp_path):
    space = small_space()
    architecture = Trellis(space).sample(1, seed=0)[0]
    plain = draw_space(space, tmp_path / "plain.svg").read_text()
    framed = draw_space(space, tmp_path / "framed.svg", architecture)
    assert plain.count("#1f4fd8") == 0
    assert framed.read_text().count("stroke: #1f4fd8") == len(space.decisions)
    assert architecture.choices["many"] in words(framed)  # a strip does not name it otherwise
    with pytest.raises(InputError, match="space"):
        draw_space(build_mobile_cpu(), tmp_path / "other.svg", architecture)
    assert not (tmp_path / "other.svg").exists()


def test_rows_cost_what_networks_do():
    """Independent of edges: two networks that differ in one option differ by what the options cost."""
    space = build_mobile_cpu()
    rows = {row.name: {option.name: option.macs for option in row.options} for row in space_rows(space)}
    base = space.any_architecture
    for decision in space.decisions:
        for option in decision.options:
            other = space.architecture({**base.choices, decision.name: option})
            assert (space.network(other).macs - space.network(base).macs
                    == rows[decision.name][option] - rows[decision.name][base.choices[decision.name]])


def test_rows_take_the_largest_input():
    space = small_space()
    (first,) = [row for row in space_rows(space) if row.name == "first"]
    largest = MBConv(24, 5).parts((24, 16, 16))[0].network.macs
    assert {option.name: option.macs for option in first.options}["k5"] == largest
    assert (first.channels, first.resolution, first.is_conditional) == ("24", "12x12 to 16x16", False)


def test_what_depends_on_choices_before_is_marked():
    rows = {row.name: row for row in space_rows(small_space())}
    assert [(option.name, option.always) for option in rows["second"].options] == [("k3", False), ("k5", False), ("skip", True)]
    fits = SearchSpace("fits", (3, 8, 8), (
        Decision("width", {"w16": ConvBlock(16), "w24": ConvBlock(24)}),
        Decision("unit", {"shuffle": ShuffleUnit(24), "conv": ConvBlock(24)}, where_fits=True), Fixed("head", Head(10))))
    unit = space_rows(fits)[1]
    assert [(option.name, option.always) for option in unit.options] == [("shuffle", False), ("conv", True)]


def test_cells_are_stacked_and_read_what_they_may():
    space = build_darts_cpu()
    assert [site.cell.kind for site in stacked_cells(space)] == ["normal", "reduction", "normal", "reduction", "normal"]
    assert [site.inner for site in stacked_cells(space)] == [(8, 16, 16), (16, 8, 8), (16, 8, 8), (32, 4, 4), (32, 4, 4)]
    assert state_sources(space.kinds["normal"]) == {state: frozenset(range(state)) for state in (2, 3, 4, 5)}
    blocks = state_sources(build_one_shot_cpu().kinds["cell"])
    assert blocks == {2: {0, 1}, 3: {2}, 4: {0, 1, 3}, 5: {4}, 6: {0, 1, 3, 5}, 7: {6}}


def test_a_space_whose_options_cost_nothing_is_drawn(tmp_path):
    space = SearchSpace("free", (3, 8, 8), (Decision("size", {"r8": Resolution(8), "r4": Resolution(4)}), Fixed("head", Head(2))))
    assert "r8" in words(draw_space(space, tmp_path / "free.svg"))


def test_names_of_any_length_and_spaces_of_any_depth_are_drawn(tmp_path):
    long = "n" * 300
    space = SearchSpace(long, (3, 8, 8), (Fixed("stem", Stem(4)), Decision(long, {long: ConvBlock(4, 1), "b": ConvBlock(4)})))
    assert long in words(draw_space(space, tmp_path / "long.svg"))
    deep = SearchSpace("deep", (3, 8, 8), tuple(
        Decision(f"d{number}", {"one": Sequence((ConvBlock(3, 1),)), "skip": Identity()}) for number in range(400)))
    with Image.open(draw_space(deep, tmp_path / "deep.png")) as image:
        assert max(image.size) <= 30_000


@pytest.mark.parametrize(("names", "runs"), [
    (["k3_e1", "k3_e6", "k5_e1", "k5_e6"], [("k3", 2), ("k5", 2)]),
    (["a_x_1", "a_x_2", "a_y_1", "b_1", "b_2"], [("a", 3), ("b", 2)]),
    (["one", "two"], [("", 2)]),
    ([f"n{number}_a" for number in range(9)], [("", 9)])])
def test_names_that_begin_alike_are_neighbours(names, runs):
    assert name_runs(names) == runs


def test_strips_of_a_published_space_are_grouped_by_its_choices():
    names = list(build_spos_blocks_channels_cpu().decisions[0].options)
    assert name_runs(names) == [("shuffle_3x3", 3), ("shuffle_5x5", 3), ("shuffle_7x7", 3), ("xception", 3)]


@pytest.mark.parametrize(("macs", "text"), [
    (0, "0"), (950, "950"), (12_340, "12.3 k"), (4_249_000, "4.2 M"), (99_949_999, "99.9 M"), (99_960_000, "100 M"),
    (192e9, "192 G")])
def test_macs_in_few_characters(macs, text):
    assert short_macs(macs) == text


def test_spans():
    assert [span(values, str) for values in ([], [24], [64, 16, 24])] == ["", "24", "16 to 64"]
    assert span([1_800_000, 1_810_000], short_macs) == "1.8 M"


@pytest.mark.parametrize("name", ["picture", "picture.bmp", "picture.html", ".png"])
def test_another_suffix_is_refused(name):
    with pytest.raises(InputError, match=r"one of \.png, \.svg, \.pdf"):
        check_space_picture(name)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_not_installed_is_told(suffix, monkeypatch, tmp_path):
    check_space_picture(tmp_path / f"picture{suffix}")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UnavailableError, match="pip install matplotlib"):
        draw_space(build_mobile_cpu(), tmp_path / f"picture{suffix}")
