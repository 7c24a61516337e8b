"""The contract of every training method, on a space of layers and on one of cells: trains, resumes, is read back, scores."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from hwnas.errors import InfeasibleError, InputError
from hwnas.ir.blocks import ConvBlock, Head, Identity, MBConv, Stem
from hwnas.ir.costs import MacsCost
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.ir.trellis import Trellis
from hwnas.supernet import (
    SupernetEvaluator,
    TrainConfig,
    build_supernet,
    extract,
    load_supernet,
    recalibrate_batch_norm,
    train_supernet,
)
from hwnas.supernet.differentiable import Darts, FBNet
from hwnas.supernet.latency_loss import Additive
from hwnas.supernet.methods import METHODS, Budget, is_differentiable, make_settings, settings_to_dict
from hwnas.supernet.one_shot import OneShot
from hwnas.supernet.single_path import Sandwich, SinglePath
from hwnas.supernet.train import ARCHITECTURE_FILE, load_architecture
from tests.supernet.cell_spaces import darts_like
from tests.supernet.samples import CLASSES, CONFIG, tiny_space

FULL = TrainConfig(epochs=2, batch_size=16, learning_rate=0.05, max_shift=1, seed=3, threads=1)


def even_space():
    """Layers whose options all give one shape, as binary gates and sums of all options need."""
    return SearchSpace("even", (3, 16, 16), (
        Fixed("stem", Stem(8)),
        Decision("first", {"k3": MBConv(8, 3, 2), "k5": MBConv(8, 5, 2), "skip": Identity()}),
        Decision("second", {"k3": MBConv(12, 3, 2, 2), "plain": ConvBlock(12, 3, 2)}),
        Fixed("head", Head(CLASSES, 16))))


SPACES = {"layers": tiny_space, "even": even_space, "cells": darts_like}
# What a combination cannot do, and the words that say so.
REFUSED = {("cells", "proxyless"): "gates", ("layers", "one-shot"): "one shape", ("layers", "proxyless"): "one output shape"}


def middle(space):
    trellis = Trellis(space, MacsCost())
    return Budget(MacsCost(), trellis.min_cost() + 0.4 * (trellis.max_cost() - trellis.min_cost()))


def budget_of(method, space):
    return middle(space) if METHODS[method].needs_budget else None


CASES = [(kind, method) for kind in SPACES for method in METHODS if (kind, method) not in REFUSED]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def trained(request, tmp_path_factory, dataset):
    kind, method = request.param
    space = SPACES[kind]()
    folder = tmp_path_factory.mktemp(f"{kind}-{method}")
    result = train_supernet(space, dataset, folder, dataclasses.replace(FULL, method=method), budget=budget_of(method, space))
    return kind, method, space, folder, result


def test_it_trains_and_is_read_back(trained, dataset):
    _, method, space, folder, result = trained
    assert len(result.epoch_losses) == FULL.epochs and result.steps > FULL.epochs and np.isfinite(result.epoch_losses).all()
    supernet, document = load_supernet(folder)
    assert document["config"]["method"] == method and document["settings"]["kind"] == METHODS[method].settings.__name__
    assert (document["budget"] is None) == (not METHODS[method].needs_budget)
    architecture = Trellis(space).sample(1, seed=1)[0]
    (score,) = SupernetEvaluator(supernet, dataset, validation_images=40, calibration_images=64)([architecture])
    module = extract(supernet, architecture)
    recalibrate_batch_norm(module, [torch.from_numpy(dataset.normalise(dataset.train.images[:64]))])
    with torch.inference_mode():
        answers = module.eval()(torch.from_numpy(dataset.normalise(dataset.validation.images[:40]))).argmax(1).numpy()
    assert score == pytest.approx(np.mean(answers == dataset.validation.labels[:40]))


def test_the_same_call_reports_and_another_is_refused(trained, dataset):
    _, method, space, folder, result = trained
    config = dataclasses.replace(FULL, method=method)
    again = train_supernet(space, dataset, folder, config, budget=budget_of(method, space))
    assert again.already_trained and again.epoch_losses == result.epoch_losses
    with pytest.raises(InputError, match="seed"):
        train_supernet(space, dataset, folder, dataclasses.replace(config, seed=9), budget=budget_of(method, space))
    if METHODS[method].needs_budget:
        other = dataclasses.replace(middle(space), limit=middle(space).limit * 1.01)
        with pytest.raises(InputError, match="limit"):
            train_supernet(space, dataset, folder, config, budget=other)


def test_a_run_cut_in_two_ends_with_the_same_weights(trained, dataset, tmp_path):
    _, method, space, folder, result = trained
    config = dataclasses.replace(FULL, method=method, checkpoint_seconds=0)
    stop_after = result.steps // 2 + 1

    def stop(done, *_):
        if done == stop_after:
            raise RuntimeError("pulled the plug")

    with pytest.raises(RuntimeError, match="plug"):
        train_supernet(space, dataset, tmp_path, config, budget=budget_of(method, space), progress=stop)
    train_supernet(space, dataset, tmp_path, config, budget=budget_of(method, space))
    assert (tmp_path / "supernet.safetensors").read_bytes() == (folder / "supernet.safetensors").read_bytes()


def test_only_differentiable_methods_leave_architecture_parameters(trained):
    _, method, space, folder, _ = trained
    path = folder / ARCHITECTURE_FILE
    assert path.exists() == is_differentiable(method)
    if not is_differentiable(method):
        with pytest.raises(InputError, match="darts, fbnet or proxyless"):
            load_architecture(folder, space)
        return
    rows = [options for place in json.loads(path.read_text())["probabilities"].values() for options in
            ([place] if all(isinstance(value, float) for value in place.values()) else place.values())]
    assert all(sum(row.values()) == pytest.approx(1) for row in rows)
    architecture = load_architecture(folder, space, MacsCost())
    budget = middle(space)
    best = architecture.most_probable(budget.limit)
    assert Trellis(space, MacsCost()).cost(best) <= budget.limit
    with pytest.raises(InfeasibleError):
        architecture.most_probable(Trellis(space, MacsCost()).min_cost() * 0.9)


@pytest.mark.parametrize(("kind", "method"), REFUSED)
def test_what_a_method_cannot_do_is_told_before_training(kind, method, dataset, tmp_path):
    space = SPACES[kind]()
    with pytest.raises(InputError, match=REFUSED[kind, method]):
        train_supernet(space, dataset, tmp_path, dataclasses.replace(FULL, method=method), budget=budget_of(method, space))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("method", "settings", "budget", "words"), [
    ("darts", None, False, "needs one"), ("fairnas", None, True, "knows no budget"), ("spos", Sandwich(), False, "SinglePath"),
    ("magic", None, False, "must be one of spos")])
def test_what_does_not_fit_together(space, dataset, tmp_path, method, settings, budget, words):
    with pytest.raises(InputError, match=words):
        train_supernet(space, dataset, tmp_path, dataclasses.replace(CONFIG, method=method), settings=settings,
                       budget=middle(space) if budget else None)


def test_single_paths_within_a_budget(space, dataset, tmp_path):
    budget = middle(space)
    train_supernet(space, dataset, tmp_path, CONFIG, budget=budget)
    document = json.loads((tmp_path / "supernet.json").read_text())
    assert document["budget"]["limit"] == budget.limit and document["budget"]["unit"] == "MACs"
    with pytest.raises(InfeasibleError):
        train_supernet(space, dataset, tmp_path / "new", CONFIG, budget=dataclasses.replace(budget, limit=1.0))


def test_slices_are_shared_where_asked_for(space, dataset, tmp_path):
    train_supernet(space, dataset, tmp_path, dataclasses.replace(CONFIG, sharing="channels"))
    supernet, _ = load_supernet(tmp_path)
    shared, whole = (sum(parameter.numel() for parameter in each.parameters()) for each in (supernet, build_supernet(space)))
    assert shared < whole
    with pytest.raises(InputError, match="sharing"):
        train_supernet(space, dataset, tmp_path, CONFIG)
    with pytest.raises(InputError, match="cells"):
        train_supernet(darts_like(), dataset, tmp_path / "new", dataclasses.replace(CONFIG, sharing="elastic"))


def test_settings_by_name():
    assert make_settings("darts", {"unrolled": True}) == Darts(unrolled=True)
    assert make_settings("one-shot", {"ghost_batch_size": 8}) == OneShot(ghost_batch_size=8)
    assert make_settings("spos", {}) == SinglePath()
    for method, values, words in (("spos", {"ghost_batch_size": 8}, "no settings"), ("fbnet", {"unrolled": True}, "unrolled"),
                                  ("one-shot", {"ghost_batch_size": 1}, "ghost_batch_size")):
        with pytest.raises(InputError, match=words):
            make_settings(method, values)


def test_settings_of_different_classes_differ_on_disk():
    one, other = (settings_to_dict(FBNet(latency=latency)) for latency in (Additive(), FBNet().latency))
    assert one["latency"]["kind"] == "Additive" and other["latency"]["kind"] == "Target" and one["kind"] == "FBNet"
    assert json.loads(json.dumps(one)) == one
