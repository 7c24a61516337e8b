"""Spaces by name, from Python and from YAML: what is accepted, and one sentence for what is not."""

import json

import pytest
import yaml

from hwnas.errors import InputError
from hwnas.ir.trellis import Trellis
from hwnas.spaces import SPACES
from hwnas.spaces.load import load_space

YAML = """
name: mine
input_shape: [3, 32, 32]
layers:
  - {name: stem, block: {kind: stem, out_channels: 16, stride: 1}}
  - name: stage1
    repeat: 3
    first: {stride: 2}
    grid: {kind: mbconv, out_channels: 24, kernel: [3, 5], expansion: [3, 6]}
    options: {skip: {kind: identity}}
  - {name: head, block: {kind: head, classes: 10, channels: 64}}
"""

PYTHON = """
import hwnas
def options(width, stride):
    return {f"k{k}_e{e}": hwnas.MBConv(width, k, e, stride) for k in (3, 5) for e in (3, 6)}
space = hwnas.SearchSpace("mine", (3, 32, 32), (
    hwnas.Fixed("stem", hwnas.Stem(16, stride=1)),
    hwnas.Decision("stage1_1", options(24, 2)),
    hwnas.Decision("stage1_2", options(24, 1) | {"skip": hwnas.Identity()}),
    hwnas.Decision("stage1_3", options(24, 1) | {"skip": hwnas.Identity()}),
    hwnas.Fixed("head", hwnas.Head(10, 64)),
))
def build():
    return space
broken = 3
"""


@pytest.mark.parametrize("name", SPACES)
def test_published_space_is_whole(name):
    space = load_space(name)
    assert space.name == name and space.description
    smallest, largest = (space.network(one) for one in (Trellis(space).sample(2, seed=0)))
    assert smallest.output_shape == largest.output_shape


def test_sizes_are_the_published_ones():
    assert load_space("spos").size == 4**20 == 1_099_511_627_776
    assert load_space("proxyless").size == 6**6 * 7**15


def test_yaml_and_python_say_the_same(tmp_path):
    (tmp_path / "mine.yaml").write_text(YAML)
    (tmp_path / "mine.py").write_text(PYTHON)
    spaces = [load_space(f"{tmp_path}/{name}") for name in ("mine.yaml", "mine.py:space", "mine.py:build")]
    assert len({space.hash for space in spaces}) == 1
    assert spaces[0].size == 4 * 5 * 5


@pytest.mark.parametrize(("reference", "words"), [
    ("nothing", "A space is one of"),
    ("{}/absent.yaml", "cannot be read"),
    ("{}/absent.py:space", "cannot be read"),
    ("{}/mine.py:broken", "must be a hwnas.SearchSpace"),
    ("{}/mine.py:absent", "AttributeError"),
    ("{}/raises.py:space", "ZeroDivisionError"),
    ("{}/torn.yaml", "not valid YAML"),
    ("{}/list.yaml", "must be a mapping"),
])
def test_bad_references_are_one_sentence(tmp_path, reference, words):
    (tmp_path / "mine.py").write_text(PYTHON)
    (tmp_path / "raises.py").write_text("space = 1 / 0")
    (tmp_path / "torn.yaml").write_text("name: [mine")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(InputError, match=words):
        load_space(reference.format(tmp_path))


@pytest.mark.parametrize(("old", "new", "words"), [
    ("kind: mbconv", "kind: mbcnov", "'kind' among"),
    ("kernel: [3, 5]", "kernel: [3, 4]", "kernel must be odd"),
    ("repeat: 3", "repeat: 0", "repeat"),
    ("repeat: 3", "repeat: 3\n    colour: red", "repeat"),
    ("first: {stride: 2}", "first: {sride: 2}", "'sride'"),
    ("out_channels: 24", "out_channels: 24.5", "out_channels must be a whole number"),
    ("input_shape: [3, 32, 32]", "input_shape: [3, 32]", "three whole numbers"),
    ("name: mine", "nam: mine", "'name' is missing"),
    ("name: stage1", "name: stem", "unique|name"),
])
def test_bad_yaml_spaces_are_one_sentence(tmp_path, old, new, words):
    text = YAML.replace(old, new, 1)
    if new.endswith("name: stem"):
        text = text.replace("    repeat: 3\n    first: {stride: 2}\n", "")
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        load_space(f"{tmp_path}/mine.yaml")
    assert "\n" not in str(caught.value)


def test_a_yaml_bomb_is_refused_or_small(tmp_path):
    (tmp_path / "bomb.yaml").write_text("name: x\ninput_shape: [3, 8, 8]\nlayers:\n  - {name: a, repeat: 100000000, block: {}}\n")
    with pytest.raises(InputError, match="repeat"):
        load_space(f"{tmp_path}/bomb.yaml")


CELLS = """
from hwnas.ir.cells import Cell, CellDecision, CellKind, CellSpace, Pick, Skeleton
from hwnas.ir.blocks import ConvBlock, Identity
from hwnas.ir.cell_operations import CellHead, FactorizedReduction, SeparableOperation

operations = {"skip": (Identity(), FactorizedReduction(2)), "conv": (SeparableOperation(1, 3), SeparableOperation(1, 3, 2))}
cells = (Cell("one", "cell", 4), Cell("two", "cell", 8, 2))
skeleton = Skeleton((3, 16, 16), (ConvBlock(4),), cells, CellHead(10), operations)
decisions = [CellDecision(f"state{state}", state, {
    f"{name}{source}": Pick(((name, source), ("conv", 0))) for name in operations for source in range(state)})
    for state in (2, 3)]

def build(concat=None):
    return CellSpace("mine", skeleton, {"cell": CellKind(decisions, concat)}, "Of my own.")

space = build((2, 3))
late = lambda: build((2, 4))
"""


def test_a_space_of_cells_loads_from_python_json_and_yaml(tmp_path):
    (tmp_path / "mine.py").write_text(CELLS)
    space = load_space(f"{tmp_path}/mine.py:space")
    assert space.size == 4 * 6 and space.name == "mine"
    assert load_space(f"{tmp_path}/mine.py:build").hash != space.hash  # another output, and 24 networks as well
    (tmp_path / "mine.json").write_text(json.dumps(space.to_dict()))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(space.to_dict()))
    for name in ("mine.json", "mine.yaml"):
        again = load_space(f"{tmp_path}/{name}")
        assert again == space and again.hash == space.hash and again.description == "Of my own."
        for one in Trellis(space).sample(5):  # whatever order a file has its options in
            assert again.network(again.check(one)) == space.network(one)


def test_bad_spaces_of_cells_are_one_sentence(tmp_path):
    (tmp_path / "mine.py").write_text(CELLS)
    document = load_space(f"{tmp_path}/mine.py:space").to_dict()
    (tmp_path / "half.json").write_text(json.dumps(document)[:200])
    (tmp_path / "without.json").write_text(json.dumps({key: value for key, value in document.items() if key != "skeleton"}))
    (tmp_path / "unknown.json").write_text(json.dumps(document).replace('"conv", 1', '"cnov", 1'))
    (tmp_path / "wide.json").write_text(json.dumps(document).replace('"identity"', '"cell_head", "classes": 4'))
    for reference, words in (("mine.py:late", r"0 to 3, but \(2, 4\)"), ("half.json", "half.json"),
                             ("without.json", "'skeleton'"),
                             ("unknown.json", "decision 'state2', option 'conv1', in 'one', must name one of skip, conv"),
                             ("wide.json", "option 'skip0', in 'one', must make 4x16x16 of 4x16x16, .* makes 4x1x1")):
        with pytest.raises(InputError, match=words) as caught:
            load_space(f"{tmp_path}/{reference}")
        assert "\n" not in str(caught.value)


def test_precisions_are_for_layers_alone(tmp_path):
    (tmp_path / "mine.py").write_text(CELLS)
    for reference in ("darts-cpu+int8", f"{tmp_path}/mine.py:space+int8+fp32"):
        with pytest.raises(InputError, match="one of cells"):
            load_space(reference)
