"""From a chosen architecture to a trained network and its artefact."""

import json

import numpy as np
import pytest
import torch

from hwnas.errors import InputError
from hwnas.export.verify import verify_artifact
from hwnas.lower.torch import to_torch
from hwnas.pipeline.export import retrained_network
from hwnas.pipeline.retrain import read_retrained, retrain
from hwnas.supernet.config import LoopConfig
from hwnas.supernet.distill import Distillation
from hwnas.supernet.evaluate import inherited_weights
from hwnas.supernet.retrain import load_network_weights
from hwnas.supernet.train import load_supernet
from tests.pipeline.samples import DATA, all_networks, make_space

CONFIG = LoopConfig(epochs=2, batch_size=40, learning_rate=0.05, max_shift=0, threads=1)
STILL = LoopConfig(epochs=1, batch_size=40, learning_rate=1e-12, max_shift=0, threads=1)


@pytest.fixture(scope="module")
def done(space, supernet_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("network")
    return folder, retrain(all_networks(space)[3], space, folder, CONFIG, weights=supernet_dir)


def test_accuracy_is_that_of_the_test_set(done, space, dataset):
    folder, found = done
    network = space.network(all_networks(space)[3])
    module = to_torch(network, load_network_weights(folder, network)).eval()
    with torch.inference_mode():
        logits = module(torch.from_numpy(dataset.normalise(dataset.test.images)))
    assert found.accuracy == pytest.approx(float(np.mean(logits.argmax(1).numpy() == dataset.test.labels)))


def test_it_starts_from_the_weights_that_the_search_scored(space, supernet_dir, dataset, tmp_path):
    architecture = all_networks(space)[5]
    retrain(architecture, space, tmp_path, STILL, weights=supernet_dir)
    inherited = inherited_weights(load_supernet(supernet_dir)[0], architecture, dataset)
    weights = load_network_weights(tmp_path, space.network(architecture))
    for name, array in weights.items():
        if "running" not in name:
            np.testing.assert_allclose(array, inherited[name], atol=1e-7)


def test_from_scratch_it_knows_nothing(space, tmp_path, supernet_dir):
    architecture = all_networks(space)[5]
    scratch = retrain(architecture, space, tmp_path / "scratch", STILL, data=DATA)
    inherited = retrain(architecture, space, tmp_path / "inherited", STILL, weights=supernet_dir)
    assert scratch.accuracy < inherited.accuracy


def test_a_teacher_changes_what_is_learned(done, space, supernet_dir, tmp_path):
    folder, _ = done
    retrain(all_networks(space)[3], space, tmp_path, CONFIG, weights=supernet_dir, teacher=supernet_dir,
            distillation=Distillation(0.9, 2.0))
    assert json.loads((tmp_path / "network.json").read_text())["distillation"]["weight"] == 0.9
    assert (tmp_path / "network.safetensors").read_bytes() != (folder / "network.safetensors").read_bytes()


def test_the_folder_says_what_it_is_and_is_exported(done, space, tmp_path):
    folder, found = done
    architecture, its_space, document = read_retrained(folder)
    assert architecture == all_networks(space)[3] and its_space.hash == space.hash and document["data_source"]["spec"] == DATA
    artifact = retrained_network(folder, architecture).export(tmp_path / "artefact")
    assert artifact.manifest.accuracy == found.accuracy and artifact.manifest.architecture == architecture.to_dict()
    assert verify_artifact(tmp_path / "artefact").manifest.classes == tuple("0123456789")
    with pytest.raises(InputError, match="own architecture file"):
        retrained_network(folder, all_networks(space)[4])


def test_what_cannot_work_is_told(space, supernet_dir, tmp_path):
    architecture = all_networks(space)[0]
    with pytest.raises(InputError, match="give --data"):
        retrain(architecture, space, tmp_path, CONFIG)
    with pytest.raises(InputError, match="dataset must be the one"):
        retrain(architecture, space, tmp_path, CONFIG, weights=supernet_dir, data=DATA.replace("train=200", "train=160"))
    with pytest.raises(InputError, match="network"):
        read_retrained(supernet_dir)
    other = make_space("other", classes=11)
    with pytest.raises(InputError, match="space"):
        retrain(architecture, other, tmp_path, CONFIG, weights=supernet_dir)
