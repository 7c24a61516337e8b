"""An architecture is a value; its file is read back whole or refused."""

import copy
import json
import multiprocessing
from pathlib import Path

import pytest

from hwnas.errors import InputError
from hwnas.ir.architecture import Architecture, architecture_from_dict, load_architecture
from hwnas.ir.blocks import Identity, MBConv
from hwnas.ir.space import Decision, SearchSpace

SPACE = SearchSpace("tiny", (8, 8, 8), (  # type: ignore[arg-type]
    Decision("first", {"mb": MBConv(8), "skip": Identity()}), Decision("second", {"mb": MBConv(8), "skip": Identity()})))
ONE = SPACE.architecture({"first": "mb", "second": "skip"})
DOCUMENT = {"schema": "hwnas.architecture/1", "space": "tiny", "space_hash": SPACE.hash,
            "choices": {"first": "mb", "second": "skip"}}


def test_the_file_is_what_a_person_reads(tmp_path: Path) -> None:
    path = ONE.save(tmp_path / "best.json")
    assert json.loads(path.read_text()) == DOCUMENT
    assert len(path.read_text().splitlines()) > 6


def test_a_file_is_read_back(tmp_path: Path) -> None:
    again = load_architecture(ONE.save(tmp_path / "best.json"))
    assert again == ONE and hash(again) == hash(ONE)
    assert SPACE.check(again) == ONE
    assert str(again) == "mb skip"


def test_an_architecture_of_another_space_is_refused_in_one_printable_line() -> None:
    """Its hash is whatever a file says."""
    other = architecture_from_dict(DOCUMENT | {"space": "x\ny", "space_hash": "a\n\x1b[2Jb"})
    with pytest.raises(InputError) as caught:
        SPACE.check(other)
    assert str(caught.value).isprintable()
    assert r"it is of 'x\ny' ('a\n\x1b[2Jb') and the space is 'tiny'" in str(caught.value)


def test_a_file_truncated_anywhere_is_refused(tmp_path: Path) -> None:
    whole = ONE.save(tmp_path / "best.json").read_bytes().rstrip()
    path = tmp_path / "part.json"
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"part\.json"):
            load_architecture(path)


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.json", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            load_architecture(path)
    binary = tmp_path / "binary.json"
    binary.write_bytes(bytes(range(256)))
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 200_000)
    for path in (binary, deep):
        with pytest.raises(InputError, match="not valid JSON"):
            load_architecture(path)


@pytest.mark.parametrize("document", [
    None, [], "text", {}, {**DOCUMENT, "schema": "hwnas.architecture/9"}, {**DOCUMENT, "space": 3},
    {**DOCUMENT, "space_hash": None}, {**DOCUMENT, "choices": ["mb"]}, {**DOCUMENT, "choices": {"first": 0}},
    {key: value for key, value in DOCUMENT.items() if key != "choices"}])
def test_documents_that_are_no_architecture_are_refused(document: object) -> None:
    with pytest.raises(InputError, match="some file"):
        architecture_from_dict(document, "some file")


def test_it_is_immutable() -> None:
    with pytest.raises(TypeError):
        ONE.choices["first"] = "skip"  # type: ignore[index]
    with pytest.raises(AttributeError):
        ONE.space = "other"  # type: ignore[misc]
    choices = {"first": "mb", "second": "mb"}
    made = Architecture("tiny", SPACE.hash, choices)
    choices["first"] = "skip"
    assert made.choices["first"] == "mb"


def test_equality_and_hash() -> None:
    same = Architecture("tiny", SPACE.hash, {"first": "mb", "second": "skip"})
    reordered = Architecture("tiny", SPACE.hash, {"second": "skip", "first": "mb"})
    assert ONE == same == reordered and len({ONE, same, reordered}) == 1
    others = [SPACE.architecture({"first": first, "second": second}) for first in ("mb", "skip") for second in ("mb", "skip")]
    assert len(set(others)) == 4 and others.count(ONE) == 1
    assert Architecture("tiny", "0" * 64, dict(ONE.choices)) != ONE


def test_copies_are_equal() -> None:
    for clone in (copy.copy(ONE), copy.deepcopy(ONE)):
        assert clone == ONE and hash(clone) == hash(ONE)


def echo(architecture: Architecture) -> tuple[Architecture, int]:
    return architecture, len(SPACE.network(architecture).nodes)


def test_it_travels_to_another_process_and_back() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        again, nodes = pool.apply(echo, (ONE,))
    assert again == ONE and hash(again) == hash(ONE)
    assert nodes == len(SPACE.network(ONE).nodes)
