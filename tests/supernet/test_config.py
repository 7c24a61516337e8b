"""Training numbers: bounds, schedules, and what makes two runs the same."""

import dataclasses
import math

import pytest

from hwnas.errors import InputError
from hwnas.supernet import TrainConfig


@pytest.mark.parametrize(("field", "value"), [
    ("epochs", 0), ("batch_size", 1), ("learning_rate", 0.0), ("learning_rate", math.nan), ("learning_rate", math.inf),
    ("momentum", 1.0), ("weight_decay", -1e-4), ("weight_decay", math.nan), ("label_smoothing", 1.0), ("gradient_clip", 0.0),
    ("warmup_steps", -1), ("max_shift", -1), ("cutout", -1), ("seed", -1), ("threads", 0), ("checkpoint_seconds", -1.0),
    ("schedule", "step"), ("sharing", "rows"), ("precision", "fp8"), ("accumulation", 0), ("ema_decay", 1.0),
    ("ema_decay", -0.1), ("log_steps", -1), ("ranges", "fixed")])
def test_values_that_cannot_train_are_refused_by_name(field, value):
    with pytest.raises(InputError, match=field.split("_")[0]):
        TrainConfig(**{field: value})


def test_the_linear_schedule_warms_up_then_falls_towards_zero():
    config = TrainConfig(learning_rate=0.5, warmup_steps=4)
    rates = [config.learning_rate_at(step, 14) for step in range(15)]
    assert rates[:4] == [0.125, 0.25, 0.375, 0.5]
    assert rates[4:] == pytest.approx([0.5 * (10 - n) / 10 for n in range(11)])


def test_the_cosine_schedule_is_half_way_down_in_the_middle():
    config = TrainConfig(learning_rate=0.5, schedule="cosine")
    assert [config.learning_rate_at(step, 100) for step in (0, 50, 100)] == pytest.approx([0.5, 0.25, 0.0])


def test_a_warm_up_longer_than_the_run_stays_finite():
    config = TrainConfig(learning_rate=1.0, warmup_steps=10)
    assert [config.learning_rate_at(step, 5) for step in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])


def test_how_a_run_is_carried_out_is_not_what_it_is():
    config = TrainConfig()
    assert dataclasses.replace(config, threads=1, device="cuda", compile=True, log_steps=9,
                               checkpoint_seconds=0.0).identity() == config.identity()
    for change in ({"epochs": 31}, {"accumulation": 2}, {"ema_decay": 0.9}, {"precision": "bf16"}, {"ranges": "statistics"}):
        assert dataclasses.replace(config, **change).identity() != config.identity()
