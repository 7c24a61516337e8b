"""What a message tells a user to install exists."""

import re
import tomllib
from pathlib import Path

import pytest

import hwnas
from hwnas.runtimes.tensorrt import TENSORRT, TENSORRT_RTX

SOURCES = Path(hwnas.__file__).parent
PROJECT = SOURCES.parent / "pyproject.toml"


@pytest.mark.skipif(not PROJECT.exists(), reason="hwnas is installed without its source tree")
def test_every_extra_that_a_message_names_is_one():
    with PROJECT.open("rb") as file:
        extras = set(tomllib.load(file)["project"]["optional-dependencies"])
    texts = [*(path.read_text() for path in SOURCES.rglob("*.py")), TENSORRT._install, TENSORRT_RTX._install]
    named = {extra for text in texts for found in re.findall(r"'hwnas\[([\w,-]+)\]'", text) for extra in found.split(",")}
    assert {"train", "tensorrt", "tensorrt-rtx"} <= named
    assert named - extras == set()
