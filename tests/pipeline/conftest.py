"""One thread, and what most tests here share: data, and a supernet that trained for a moment."""

import pytest
import torch

from hwnas.data import load_dataset
from hwnas.supernet.config import TrainConfig
from hwnas.supernet.train import train_supernet
from tests.pipeline.samples import DATA, make_space


@pytest.fixture(scope="package", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="package")
def space():
    return make_space()


@pytest.fixture(scope="package")
def dataset():
    return load_dataset(DATA)


@pytest.fixture(scope="package")
def supernet_dir(tmp_path_factory, space, dataset):
    folder = tmp_path_factory.mktemp("supernet")
    config = TrainConfig(epochs=40, batch_size=32, learning_rate=0.2, max_shift=1, threads=1)
    train_supernet(space, dataset, folder, config, data_source={"spec": DATA, "seed": 0})
    return folder
