"""Torch on one thread and with one seed, so that results repeat to the bit; and what most tests here share."""

import pytest
import torch

from hwnas.data import Dataset
from hwnas.ir.space import SearchSpace
from tests.supernet.samples import tiny_dataset, tiny_space


@pytest.fixture(autouse=True)
def repeatable():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def space() -> SearchSpace:
    return tiny_space()


@pytest.fixture(scope="session")
def dataset() -> Dataset:
    return tiny_dataset()
