"""Measuring one model: against a ratio that is known, and with inputs that repeat."""

from statistics import median

import numpy as np
import pytest

from hwnas.errors import InputError
from hwnas.profiling.anchor import anchor_model
from hwnas.profiling.device import open_device
from hwnas.profiling.measure import Measurement, measure_model
from hwnas.profiling.session import SessionSamples, random_inputs
from hwnas.profiling.timing import TimingPlan
from hwnas.runtimes import RuntimeConfig, TensorInfo, load_runtime
from tests.runtimes.models import conv_net, two_input_net

RUNTIME, CONFIG = load_runtime("onnxruntime-cpu"), RuntimeConfig()


@pytest.fixture(scope="module")
def device():
    with open_device("onnxruntime-cpu", CONFIG) as opened:
        yield opened


QUICK = TimingPlan(sample_ms=0.1, min_pairs=6, max_pairs=6, max_seconds=0.05, warmup_pairs=1, max_warmup_seconds=0.01)


def test_the_anchor_takes_as_long_as_itself(device):
    plan = TimingPlan(sample_ms=1.0, min_pairs=20, max_pairs=60, max_seconds=0.3, max_warmup_seconds=0.1)
    seen = []
    for _ in range(5):  # neighbours may spoil an attempt; a wrong ratio stays wrong
        seen.append(device.measure(anchor_model(), plan))
        if median(seen[-1].ratios) == pytest.approx(1, abs=0.05):
            break
    else:
        pytest.fail(f"the anchor measured against itself had the ratios {[median(one.ratios) for one in seen]}")
    assert seen[-1].anchor_ms > 0


def test_more_work_takes_longer(device):
    """16 times the pixels; a factor of two is beyond any noise."""
    small, large = (device.measure(conv_net(width=16, side=side, depth=3).SerializeToString(), QUICK)
                    for side in (16, 64))
    assert median(large.ratios) > 2 * median(small.ratios)


def test_sessions_are_kept_in_order_and_progress_is_told(device):
    told = []
    measurement = measure_model(device, conv_net().SerializeToString(), QUICK, 3,
                                lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert len(measurement.sessions) == 3 and all(len(session.ratios) == 6 for session in measurement.sessions)


def test_ratios_are_short_on_disk(device):
    session = device.measure(conv_net().SerializeToString(), QUICK)
    assert all(value > 0 and value == float(f"{value:.5g}") for value in (*session.ratios, session.anchor_ms))


def test_one_bad_session_does_not_move_the_ratio():
    sessions = tuple(SessionSamples((ratio, ratio * 0.99, ratio * 1.01), anchor_ms)
                     for ratio, anchor_ms in ((2.0, 0.5), (2.02, 0.6), (9.0, 5.0)))
    measurement = Measurement(sessions)
    assert measurement.ratio == pytest.approx(2.02) and measurement.anchor_ms == 0.6
    low, high = measurement.ratio_ci
    assert low < measurement.ratio < high


def test_a_model_that_is_none_is_refused(device):
    with pytest.raises(InputError):
        device.measure(b"no model", QUICK)


def test_inputs_repeat_and_are_ordinary_numbers():
    executable = RUNTIME.compile(two_input_net().SerializeToString(), CONFIG)
    first, second = random_inputs(executable), random_inputs(executable)
    assert set(first) == {info.name for info in executable.inputs}
    for info in executable.inputs:
        assert first[info.name].shape == info.shape and first[info.name].dtype == info.dtype
        assert np.array_equal(first[info.name], second[info.name])
        assert (np.abs(first[info.name]) > 1e-30).all()
    executable.run(first)


def test_inputs_of_whole_numbers():
    class Executable:
        inputs = (TensorInfo("tokens", (2, 3), np.dtype(np.int64)), TensorInfo("length", (), np.dtype(np.int32)))

    inputs = random_inputs(Executable())
    assert {name: (value.shape, value.dtype) for name, value in inputs.items()} == {
        "tokens": ((2, 3), np.int64), "length": ((), np.int32)}
