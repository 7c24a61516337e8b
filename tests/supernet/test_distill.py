"""Distillation losses against closed forms and another library's."""

import numpy as np
import pytest
import torch
from scipy import special
from torch.nn import functional

from hwnas.errors import InputError
from hwnas.supernet.distill import Distillation, soft_loss

STUDENT, TEACHER = (torch.tensor(np.random.default_rng(seed).normal(0, 3, (6, 5))) for seed in (0, 1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_loss_is_kullback_leibler_and_the_teachers_entropy(temperature):
    teacher, student = (special.softmax(logits.numpy() / temperature, axis=1) for logits in (TEACHER, STUDENT))
    expected = special.rel_entr(teacher, student).sum(1) + special.entr(teacher).sum(1)
    assert soft_loss(STUDENT, TEACHER, temperature).item() == pytest.approx(temperature**2 * expected.mean(), rel=1e-12)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_gradient_is_hintons_equation_2_times_the_squared_temperature(temperature):
    logits, teacher_logits = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    soft_loss(logits, teacher_logits, temperature).backward()
    teacher, student = (special.softmax(each.numpy() / temperature, axis=1) for each in (TEACHER, STUDENT))
    np.testing.assert_allclose(logits.grad, temperature * (student - teacher) / len(STUDENT), atol=1e-12)
    assert teacher_logits.grad is None


def test_a_high_temperature_matches_logits():
    """Hinton's equation 4: with logits of zero mean, the gradient tends to (z - v) / classes."""
    logits = (STUDENT - STUDENT.mean(1, keepdim=True)).requires_grad_()
    teacher_logits = TEACHER - TEACHER.mean(1, keepdim=True)
    soft_loss(logits, teacher_logits, 1e4).backward()
    np.testing.assert_allclose(logits.grad, (logits.detach() - teacher_logits) / 5 / 6, atol=1e-3)


def test_the_weight_is_the_teachers_share():
    labels = functional.cross_entropy(STUDENT, torch.arange(6) % 5)
    soft = soft_loss(STUDENT, TEACHER, 2.0)
    mixed = Distillation(0.3, 2.0).loss(labels, STUDENT, TEACHER)
    assert mixed.item() == pytest.approx(0.7 * labels.item() + 0.3 * soft.item(), rel=1e-12)
    assert Distillation(1.0, 2.0).loss(labels, STUDENT, TEACHER).item() == pytest.approx(soft.item(), rel=1e-12)


@pytest.mark.parametrize(("values", "match"), [({"weight": 0}, "weight must be above 0"), ({"weight": 1.5}, "at most 1"),
                                               ({"weight": float("nan")}, "weight"), ({"temperature": 0}, "temperature must"),
                                               ({"temperature": float("inf")}, "finite")])
def test_what_is_no_share_or_temperature_is_refused(values, match):
    with pytest.raises(InputError, match=match):
        Distillation(**values)
