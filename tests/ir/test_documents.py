"""Spaces of every kind from their JSON form, and documents of no kind."""

import json
from typing import Any

import pytest

from hwnas.errors import InputError
from hwnas.ir import cells, space
from hwnas.ir.cells import CellSpace
from hwnas.ir.documents import READERS, space_from_dict
from hwnas.ir.space import SearchSpace
from hwnas.ir.steps import Space
from hwnas.spaces.darts import build_darts_cpu
from hwnas.spaces.mobile_cpu import build_mobile_cpu

LAYERED, OF_CELLS = build_mobile_cpu(), build_darts_cpu()


@pytest.mark.parametrize(("made", "kind"), [(LAYERED, SearchSpace), (OF_CELLS, CellSpace)])
def test_a_document_says_which_kind_of_space_it_is(made: Space, kind: type[Space]) -> None:
    document = json.loads(json.dumps(made.to_dict()))
    again = space_from_dict(document)
    assert type(again) is kind and again == made and again.hash == made.hash and again.to_dict() == document
    assert document["schema"] in READERS


def test_every_kind_has_a_schema_of_its_own() -> None:
    assert set(READERS) == {space.SCHEMA, cells.SCHEMA} and len(READERS) == 2


def test_a_document_without_a_schema_is_one_of_layers() -> None:
    document = LAYERED.to_dict()
    del document["schema"]
    assert space_from_dict(document) == LAYERED
    document = OF_CELLS.to_dict()
    del document["schema"]
    with pytest.raises(InputError, match="input_shape"):
        space_from_dict(document)


@pytest.mark.parametrize(("document", "words"), [
    (None, ["mapping", "None"]), ("darts", ["mapping", "'darts'"]), ([LAYERED.to_dict()], ["mapping"]), (3, ["'3'"]),
    ({"schema": "hwnas.space/2"}, ["hwnas.space/1", "hwnas.cell-space/1", "hwnas.space/2"]),
    ({"schema": None}, ["None"]), ({"schema": ["hwnas.space/1"]}, ["['hwnas.space/1']"]), ({"schema": {}}, ["{}"]),
    ({**LAYERED.to_dict(), "schema": cells.SCHEMA}, ["form that hwnas writes", "'skeleton'"]),
    ({**OF_CELLS.to_dict(), "schema": space.SCHEMA}, ["'input_shape'"]), ({}, ["'name'"]),
    ({"schema": cells.SCHEMA}, ["'skeleton'"]),
])
def test_documents_of_no_kind_are_refused(document: Any, words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        space_from_dict(document)
    assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)
