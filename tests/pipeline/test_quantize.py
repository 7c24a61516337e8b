"""What `hwnas quantize` is made of; the verb itself is run by tests/cli/test_quantize.py."""

import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from hwnas.errors import InputError
from hwnas.ir.blocks import ConvBlock, Head, Stem
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.latency.refusals import network_key
from hwnas.latency.table import load_table
from hwnas.lower.onnx import to_onnx
from hwnas.lower.weights import random_weights
from hwnas.pipeline.paired_accuracy import compare_accuracy
from hwnas.pipeline.precision import Evaluation, precision_space, single_changes, uniform_precision
from hwnas.pipeline.quantize import (
    QuantizeSettings,
    _begin,
    choose_calibration,
    int8_layers,
    known_to_be_less_accurate,
    measure_models,
    profile_precisions,
)
from hwnas.profiling.device import open_device
from hwnas.runtimes import RuntimeConfig
from tests.pipeline.samples import all_networks
from tests.pipeline.test_compile import QUICK

PLAIN = SearchSpace("plain", (1, 16, 16), (
    Fixed("stem", Stem(4)), Decision("first", {"a": ConvBlock(4)}), Decision("second", {"a": ConvBlock(6, 3, 2)}),
    Fixed("head", Head(10))))
DRAWN = QUICK.fit_networks + QUICK.held_out_networks


@pytest.fixture(scope="module")
def precisions():
    return precision_space(PLAIN, PLAIN.any_architecture)


@pytest.fixture(scope="module")
def device():
    with open_device("onnxruntime-cpu", RuntimeConfig()) as device:
        yield device


@pytest.fixture(scope="module")
def path(precisions, device, tmp_path_factory):
    path = tmp_path_factory.mktemp("table") / "table.json"
    profile_precisions(precisions, device, path, plan=QUICK)
    return path


def test_the_table_has_every_single_change_and_judges_by_others(path, precisions):
    table = load_table(path)
    choices = [dict(record.choices) for record in table.networks]
    assert all(choices.count(dict(one.choices)) == 1 for one in single_changes(precisions))
    assert [record.role for record in table.networks].count("held_out") == QUICK.held_out_networks
    assert [one.name for one in path.parent.iterdir()] == ["table.json"]  # no journal is left


def test_what_is_complete_is_not_measured_again(path, precisions, device):
    before = path.read_bytes()
    told = []
    table = profile_precisions(precisions, device, path, plan=QUICK, progress=lambda *call: told.append(call))
    assert not told and path.read_bytes() == before and table.networks == load_table(path).networks


def test_single_changes_go_on_from_their_journal(path, precisions, device, tmp_path):
    """As a kill after the first two of them leaves it: the table without them, and a journal."""
    table = load_table(path)
    drawn = table.networks[:DRAWN]
    replace(table, networks=drawn).save(tmp_path / "table.json")
    known = [dict(record.choices) for record in drawn]
    new = [one for one in single_changes(precisions) if dict(one.choices) not in known]
    journal = tmp_path / "table-changes.journal"
    models = {str(one): to_onnx(precisions.network(one)).SerializeToString() for one in new}
    measure_models(device, models, journal, replace(QUICK, max_minutes=0))
    rows = [{"key": key, "ratios": [number + 0.5] * 3, "anchor_ms": table.anchor_ms}
            for number, key in enumerate(list(models)[:2])]
    with open(journal, "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    done = profile_precisions(precisions, device, tmp_path / "table.json", plan=QUICK)
    found = {str(precisions.architecture(record.choices)): record.sessions for record in done.networks[DRAWN:]}
    assert set(found) == set(models) and not journal.exists()
    assert [found[row["key"]] for row in rows] == [(tuple(row["ratios"]),) for row in rows]


def test_single_changes_wait_until_all_else_is_measured_and_take_no_time_of_their_own(path, precisions, device, tmp_path):
    table = load_table(path)
    begun = replace(table, networks=table.networks[:DRAWN])
    fewer = replace(begun, networks=begun.networks[1:],
                    effort=table.effort.model_copy(update={"planned_sessions": table.effort.sessions + 1}))
    for before in (begun, fewer):
        before.save(tmp_path / "table.json")
        done = profile_precisions(precisions, device, tmp_path / "table.json", plan=replace(QUICK, max_minutes=0))
        assert [record.choices for record in done.networks] == [record.choices for record in before.networks]
        assert not (tmp_path / "table-changes.journal").exists()
    done = profile_precisions(precisions, device, tmp_path / "table.json", plan=QUICK)
    assert len(done.networks) == len(table.networks) and {record.role for record in done.networks[DRAWN:]} == {"fit"}


def test_a_journal_of_other_models_is_not_continued(device, precisions, tmp_path):
    small, large = (to_onnx(precisions.network(uniform_precision(precisions, name))).SerializeToString()
                    for name in ("int8", "fp32"))
    plan = replace(QUICK, max_minutes=0)
    assert measure_models(device, {"a": small}, tmp_path / "journal", plan) == {}
    with pytest.raises(InputError, match="models"):
        measure_models(device, {"a": large}, tmp_path / "journal", plan)


def test_another_version_goes_on(device, precisions, tmp_path, monkeypatch):
    """ONNX files name the version that made them; neither a journal nor a folder is another's for that."""
    network = precisions.network(uniform_precision(precisions, "fp32"))
    weights, plan = random_weights(network), replace(QUICK, max_minutes=0)
    before = to_onnx(network).SerializeToString()
    measure_models(device, {"a": before}, tmp_path / "journal", plan)
    _begin(tmp_path, precisions, weights, False)
    monkeypatch.setattr("hwnas.__version__", "99")
    after = to_onnx(network).SerializeToString()
    assert after != before and measure_models(device, {"a": after}, tmp_path / "journal", plan) == {}
    _begin(tmp_path, precisions, weights, False)
    with pytest.raises(InputError, match="network_sha256"):
        _begin(tmp_path, precisions, random_weights(network, 1), False)


def test_a_folder_is_anothers_only_when_nothing_is_left_in_it(path, precisions, tmp_path, monkeypatch):
    """A kill before the folder is claimed leaves no table that could be taken for the new network's."""
    def killed(*arguments):
        raise KeyboardInterrupt

    weights = random_weights(precisions.network(uniform_precision(precisions, "fp32")))
    shutil.copy(path, tmp_path / "table.json")
    (tmp_path / "quantize.json").write_text("of another network")
    monkeypatch.setattr("hwnas.pipeline.quantize.write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        _begin(tmp_path, precisions, weights, True)
    assert [one.read_text() for one in tmp_path.iterdir()] == ["of another network"]


def test_a_block_that_the_device_refuses_ends_it(path, precisions, device, tmp_path):
    table = load_table(path)
    workload = next(key for key in table.entries if key.startswith("quantized"))
    replace(table, refused={workload: "no kernel."}).save(tmp_path / "table.json")
    network = network_key(precisions.architecture(table.networks[0].choices))
    replace(table, refused={network: "no kernel."}).save(tmp_path / "whole.json")
    assert profile_precisions(precisions, device, tmp_path / "whole.json", plan=QUICK).refused == {network: "no kernel."}
    with pytest.raises(InputError, match=r"refuses quantized.* \(no kernel\): choose another device"):
        profile_precisions(precisions, device, tmp_path / "table.json", plan=QUICK)


class Known:
    """An evaluator of one answer."""

    def __init__(self, divergence):
        self._evaluation = None if divergence is None else Evaluation(np.ones(2, bool), np.zeros(2, np.intp), divergence)

    def evaluate(self, architecture):
        assert int8_layers(architecture) == len(architecture.choices)
        if self._evaluation is None:
            raise InputError("there is no int8 here: look elsewhere.")
        return self._evaluation


def test_the_calibration_of_least_divergence_is_chosen(precisions):
    method, found = choose_calibration({"a": Known(0.3), "b": Known(0.1), "c": Known(0.2)}, precisions)
    assert method == "b" and [one.divergence for one in found.values()] == [0.3, 0.1, 0.2]
    with pytest.raises(InputError, match=r"refuses the network in int8 \(there is no .* elsewhere\): choose another"):
        choose_calibration({"a": Known(None)}, precisions)


def test_int8_layers_are_counted(precisions):
    assert sorted(map(int8_layers, all_networks(precisions))) == sorted(
        sum(mix) for mix in itertools.product((0, 1), repeat=len(precisions.decisions)))


@pytest.mark.parametrize(("gained", "lost", "known"), [(0, 5, False), (0, 6, True), (6, 0, False), (3, 14, True), (3, 10, False)])
def test_less_accurate_is_what_few_coins_would_show(gained, lost, known):
    """0 of 5 heads has p = 0.0625, 0 of 6 has 0.03125; 3 of 13 has 0.092, 3 of 17 has 0.013."""
    first, second = np.arange(40) < gained, np.arange(40) >= 40 - lost
    assert known_to_be_less_accurate(compare_accuracy(first, second)) is known


@pytest.mark.parametrize("wrong", [{"max_latency_ms": 0.0}, {"max_latency_ms": float("nan")}, {"validation_images": 0}])
def test_settings_out_of_range(wrong):
    with pytest.raises(InputError):
        QuantizeSettings(**wrong)
