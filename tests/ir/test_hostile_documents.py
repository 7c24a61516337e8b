"""Architecture files and described spaces, damaged anywhere: they load, or they are refused in a sentence."""

import json

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hwnas.errors import HwnasError
from hwnas.ir.architecture import load_architecture
from hwnas.ir.blocks import ConvBlock, Head, Stem
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.spaces.load import load_space

SPACE = SearchSpace("small", (3, 12, 12), (
    Fixed("stem", Stem(8)), Decision("body", {"thin": ConvBlock(8), "wide": ConvBlock(16)}), Fixed("head", Head(5))))
ARCHITECTURE = SPACE.architecture({"body": "wide"}).to_dict()
DESCRIPTION = {
    "name": "tiny", "input_shape": [1, 16, 16], "layers": [
        {"name": "stem", "block": {"kind": "stem", "out_channels": 8}},
        {"name": "body", "options": {"a": {"kind": "conv", "out_channels": 8}, "b": {"kind": "mbconv", "out_channels": 8}}},
        {"name": "tail", "grid": {"kind": "mbconv", "out_channels": 16, "kernel": [3, 5]}},
        {"name": "head", "block": {"kind": "head", "classes": 10}}]}
ANYTHING = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
                        max_leaves=6)


@st.composite
def damaged(draw, document):
    """The document with something else at one or two places, or without what was there."""
    result = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, 2))):
        owner = result
        while True:
            if not owner:
                break
            key = draw(st.sampled_from(sorted(owner) if isinstance(owner, dict) else range(len(owner))))
            if not isinstance(owner[key], dict | list) or draw(st.booleans()):
                if draw(st.booleans()):
                    owner[key] = draw(ANYTHING)
                else:
                    del owner[key]
                break
            owner = owner[key]
    return result


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("hostile") / "document"


@settings(max_examples=200)
@given(document=damaged(ARCHITECTURE))
def test_any_architecture_is_one_or_refused(path, document):
    path.write_text(json.dumps(document))
    try:
        found = SPACE.check(load_architecture(path))
    except HwnasError as error:
        assert str(error).endswith(".")
    else:
        assert found.choices == document["choices"] and document["choices"]["body"] in ("thin", "wide")


@settings(max_examples=200)
@given(document=damaged(DESCRIPTION))
def test_any_described_space_is_one_or_refused(path, document):
    file = path.with_suffix(".yaml")
    file.write_text(yaml.safe_dump(document))
    try:
        space = load_space(str(file))
    except HwnasError as error:
        assert str(error).endswith(".") and "\n" not in str(error)
    else:
        assert space.size >= 1
