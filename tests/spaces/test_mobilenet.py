"""MobileNets against the published counts and against arithmetic that knows nothing of blocks."""

import pytest

from hwnas.spaces.mobilenet import NETWORKS, build_mobilenet_v1, build_mobilenet_v2, round_width

NETWORK = {network.name: network for network in NETWORKS}


@pytest.mark.parametrize(("name", "macs", "weights", "batch_norm"), [
    ("mobilenet-v1-0.5", 149_497_088, 1_319_648, 10_944),
    ("mobilenet-v1-0.75", 325_400_448, 2_568_144, 16_416),
    ("mobilenet-v1-1.0", 568_740_352, 4_209_088, 21_888),
    ("mobilenet-v2-0.75", 209_069_792, 2_608_784, 26_640),
    ("mobilenet-v2-1.0", 300_774_272, 3_469_760, 34_112),
    ("mobilenet-v2-1.4", 582_195_824, 6_059_840, 47_936),
])
def test_counts(name, macs, weights, batch_norm):
    network = NETWORK[name].network
    assert network.macs == macs
    assert network.parameters_by_kind.items() >= {"weights": weights, "batch_norm": batch_norm, "biases": 1000}.items()
    assert network.parameters == weights + batch_norm + 1000
    assert network.output_shape == (1000, 1, 1)


def test_no_network_is_left_out():
    assert len(NETWORKS) == len(NETWORK) == 6


@pytest.mark.parametrize(("multiplier", "macs"), [  # TF-slim's table prints 59, 97 and 509 million
    (0.35, 59_285_808), (0.5, 97_131_840), (1.3, 509_374_560)])
def test_other_multipliers_of_version_2(multiplier, macs):
    assert build_mobilenet_v2(multiplier).macs == macs


def test_a_quarter_of_version_1():
    network = build_mobilenet_v1(0.25)
    assert (network.macs, network.parameters) == (41_030_272, 463_600 + 5_472 + 1_000)


@pytest.mark.parametrize(("multiplier", "widths"), [
    (0.75, [24, 16, 24, 24, 48, 72, 120, 240]), (1.0, [32, 16, 24, 32, 64, 96, 160, 320]),
    (1.4, [48, 24, 32, 48, 88, 136, 224, 448])])
def test_widths_of_version_2(multiplier, widths):
    assert [round_width(width * multiplier) for width in (32, 16, 24, 32, 64, 96, 160, 320)] == widths


def test_a_width_never_falls_below_nine_tenths():
    assert round_width(11) == 16  # the nearest, 8, is less than 9.9
    assert round_width(3) == 8
    assert all(round_width(width) % 8 == 0 and round_width(width) >= 0.9 * width for width in range(1, 500))


def test_version_1_by_hand():
    """Table 1 of the paper, row by row: channels in, channels out, resolution of the output."""
    rows = [(32, 64, 112), (64, 128, 56), (128, 128, 56), (128, 256, 28), (256, 256, 28), (256, 512, 14),
            *[(512, 512, 14)] * 5, (512, 1024, 7), (1024, 1024, 7)]
    weights = 27 * 32 + sum(9 * low + low * high for low, high, _ in rows) + 1024 * 1000
    macs = 27 * 32 * 112**2 + sum((9 * low + low * high) * side**2 for low, high, side in rows) + 1024 * 1000
    batch_norm = 2 * (32 + sum(low + high for low, high, _ in rows))
    network = NETWORK["mobilenet-v1-1.0"].network
    assert network.macs == macs
    assert network.parameters_by_kind.items() >= {"weights": weights, "batch_norm": batch_norm, "biases": 1000}.items()
    assert network.parameters == weights + batch_norm + 1000


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_a_note_gives_the_count_where_it_is_not_the_published_figure(network):
    counted = network.network
    macs_differ = abs(counted.macs - network.published.macs) > 500_000
    parameters_differ = abs(counted.parameters - network.published.parameters) > 50_000
    assert not macs_differ or f"{counted.macs:,}" in network.note
    assert not parameters_differ or all(f"{count:,}" in network.note for count in (
        counted.parameters, *counted.parameters_by_kind.values()))
    assert (macs_differ or parameters_differ) == (network.name in ("mobilenet-v2-1.0", "mobilenet-v2-1.4"))
