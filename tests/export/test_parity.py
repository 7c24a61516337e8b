"""Tolerances that scale with the outputs and the precision, and accuracy that may not suffer."""

import numpy as np
import pytest

from hwnas.errors import VerificationError
from hwnas.export.parity import RELATIVE_TOLERANCE, check_accuracy, check_parity, coarsest_rounding
from hwnas.ir.blocks import ConvBlock, Head, Stem
from hwnas.ir.network import build_network
from hwnas.ir.quantized import HalfPrecision, Quantized

LOGITS = np.random.default_rng(0).standard_normal((50, 10)).astype(np.float32)


@pytest.mark.parametrize("precision", RELATIVE_TOLERANCE)
@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e4])
def test_the_tolerance_scales_with_the_outputs(precision, scale):
    largest = np.abs(LOGITS).max()
    allowed = RELATIVE_TOLERANCE[precision] * largest * scale
    parity = check_parity(LOGITS * scale, LOGITS * scale + np.float32(0.9 * allowed), "a test", precision)
    assert parity.tolerance == pytest.approx(allowed, rel=1e-5)
    with pytest.raises(VerificationError, match="differ by"):
        check_parity(LOGITS * scale, LOGITS * scale + np.float32(1.1 * allowed), "a test", precision)


def test_rounding_to_a_half_is_within_its_own_tolerance_and_not_within_a_finer_one():
    half = LOGITS.astype(np.float16).astype(np.float32)
    check_parity(LOGITS, half, "a test", "fp16")
    with pytest.raises(VerificationError):
        check_parity(LOGITS, half, "a test", "fp32")
    bits = LOGITS.view(np.uint32) & 0xFFFF0000  # bfloat16 is the upper half of a float32
    check_parity(LOGITS, bits.view(np.float32), "a test", "bf16")


@pytest.mark.parametrize("precision", RELATIVE_TOLERANCE)
@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_what_is_not_finite_fails_in_every_precision(precision, wrong, side):
    pair = [LOGITS.copy(), LOGITS.copy()]
    pair[side][7, 3] = wrong
    with pytest.raises(VerificationError, match="finite"):
        check_parity(*pair, "a test", precision)


def test_the_coarsest_rounding_sets_the_tolerance():
    def network(bits):
        return build_network((3, 8, 8), [("stem", Stem(4)), *bits, ("head", Head(5))])

    integers, bfloats = (("a", Quantized(ConvBlock(8), 8, 8)), ("b", HalfPrecision(ConvBlock(8), "bf16")))
    assert coarsest_rounding(network([]), "fp32") == "fp32" and coarsest_rounding(network([]), "fp16") == "fp16"
    assert coarsest_rounding(network([integers]), "fp16") == "int8"
    assert coarsest_rounding(network([integers]), "bf16") == coarsest_rounding(network([integers, bfloats]), "fp32") == "bf16"


def test_agreement_is_counted():
    other = LOGITS.copy()
    nearest = np.argsort(np.sort(LOGITS)[:, -1] - np.sort(LOGITS)[:, -2])[:5]  # where the first two classes are closest
    for row in nearest:
        best, second = np.argsort(LOGITS[row])[[-1, -2]]
        other[row, [best, second]] = LOGITS[row, [second, best]]
    gap = np.abs(other - LOGITS).max()
    assert 0 < gap < RELATIVE_TOLERANCE["bf16"] * np.abs(LOGITS).max()
    assert check_parity(LOGITS, other, "a test", "bf16").top1_agreement == pytest.approx(0.9)


def test_accuracy_may_be_won_but_not_lost():
    labels = LOGITS.argmax(axis=1)
    assert check_accuracy(LOGITS, LOGITS, labels, "a test") == 0
    worse = LOGITS.copy()
    worse[:20] = -worse[:20]
    assert check_accuracy(worse, LOGITS, labels, "a test") == pytest.approx(0.4)
    with pytest.raises(VerificationError, match=r"40\.0 are lost"):
        check_accuracy(LOGITS, worse, labels, "a test")


def test_a_few_images_do_not_prove_a_loss():
    """Three flipped either way are noise; thirty in one direction are not."""
    labels = LOGITS.argmax(axis=1)
    other, reference = LOGITS.copy(), LOGITS.copy()
    other[:4] = -other[:4]
    reference[4:7] = -reference[4:7]
    assert check_accuracy(reference, other, labels, "a test") == pytest.approx(-0.02)
