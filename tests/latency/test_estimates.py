"""Blocks that nobody timed are estimated well from those that were: of a law that is known, and of measured tables."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF

from hwnas.ir.layers import Conv, Pool
from hwnas.latency.estimates import LEAST_BLOCKS, _process, estimate_blocks
from hwnas.latency.table import load_table
from hwnas.spaces.load import load_space

TABLES = sorted((Path(__file__).parents[2] / "latency_tables").glob("*/*/fbnet.json"))


def roofline(part, slow_kernel=None, vector=1, pool_speed=None):
    """Each layer computes or moves, whichever takes longer, at a speed of its kind; and is called. Of grouped convolutions, those
    with a certain kernel may take ten times as long, and those whose channels fill no vector three times. Pools may compute with
    all in their windows."""
    total = 0.0
    for node in part.network.nodes:
        speed = 10.0
        if isinstance(node.layer, Conv) and node.layer.groups > 1:
            speed = 2.0 / (10 if node.layer.kernel[0] == slow_kernel else 1) / (3 if node.shape.channels % vector else 1)
        if pool_speed is not None and isinstance(node.layer, Pool):
            total += node.shape.elements * node.layer.kernel**2 / pool_speed / 1e6
        moved = node.shape.elements + sum(shape.elements for shape in node.input_shapes)
        total += max(node.macs / speed, moved) / 1e6 + 1e-3
    return total


def shares(keys, seed, share=0.5):
    order = np.random.default_rng(seed).permutation(np.array(keys, object)).tolist()
    count = round(share * len(order))
    return order[:count], order[count:]


@pytest.mark.parametrize(("space", "count"), [("ofa-mobilenet-v3", 200), ("mnasnet", 250), ("plain-conv", 150)])
def test_few_blocks_tell_all_of_a_published_space(space, count):
    """But for what every block has to itself, here 2 %."""
    parts, generator = load_space(space).measured_parts, np.random.default_rng(1)
    truth = {workload: roofline(part) * generator.lognormal(0, 0.02) for workload, part in parts.items()}
    measured, _ = shares(list(parts), 0, count / len(parts))
    found = estimate_blocks(parts, {workload: truth[workload] for workload in measured})
    assert list(found.ratios) == [workload for workload in parts if workload not in measured]
    errors = np.array([ratio / truth[workload] - 1 for workload, ratio in found.ratios.items()])
    assert np.median(np.abs(errors)) < 0.03 and abs(errors.mean()) < 0.01
    assert found.typical_error == pytest.approx(np.median(np.abs(errors)), rel=0.5)  # it knows how good it is


def test_more_measured_blocks_take_no_longer():
    """They are as many as the fit takes and more; what is left is estimated as well as from these."""
    parts = load_space("ofa-mobilenet-v3").measured_parts
    truth = {workload: roofline(part) for workload, part in parts.items()}
    measured, _ = shares(list(parts), 0, 0.9)
    found = estimate_blocks(parts, {workload: truth[workload] for workload in measured})
    assert len(found.ratios) == len(parts) - len(measured)
    assert np.median([abs(ratio / truth[workload] - 1) for workload, ratio in found.ratios.items()]) < 0.02


@pytest.mark.parametrize(("space", "count", "quirk"), [
    ("proxyless", 40, {"slow_kernel": 7}), ("mnasnet", 250, {"slow_kernel": 5, "vector": 4}),
    ("pnasnet", 45, {"pool_speed": 0.5})])
def test_quirks_of_a_runtime_are_learned(space, count, quirk):
    """Far off is what the same runtime without them would take."""
    parts = load_space(space).measured_parts
    truth, without = ({workload: roofline(part, **law) for workload, part in parts.items()} for law in (quirk, {}))
    measured, others = shares(list(parts), 0, count / len(parts))
    found = estimate_blocks(parts, {workload: truth[workload] for workload in measured})
    changed = [workload for workload in others if truth[workload] > 1.3 * without[workload]]
    errors = [abs(found.ratios[workload] / truth[workload] - 1) for workload in changed]
    assert len(changed) > 5 and np.median(errors) < 0.05


@pytest.mark.parametrize("path", TABLES, ids=lambda path: path.parts[-2])
def test_half_of_a_measured_table_tells_the_other_half(path):
    """Far better than size alone: that the time goes with the multiply-accumulates."""
    table = load_table(path)
    parts = table.search_space.measured_parts
    ratios = {workload: entry.ratio for workload, entry in table.entries.items()}
    errors, by_size = [], []
    for seed in range(3):
        measured, others = shares(list(parts), seed)
        found = estimate_blocks(parts, {workload: ratios[workload] for workload in measured})
        share = np.median([ratios[workload] / parts[workload].network.macs for workload in measured])
        errors += [abs(found.ratios[workload] / ratios[workload] - 1) for workload in others]
        by_size += [abs(share * parts[workload].network.macs / ratios[workload] - 1) for workload in others]
    assert np.median(errors) < 0.08 and np.median(errors) < 0.3 * np.median(by_size)


def test_the_process_is_that_of_a_library():
    """The columns' products are the kernel, so that a ridge on them is a Gaussian process."""
    generator = np.random.default_rng(0)
    sizes = generator.normal(0, 1, (30, 4))
    columns = _process(sizes, sizes[:12], 1.5)
    library = RBF(1.5)
    np.testing.assert_allclose(columns[:12] @ columns[:12].T, library(sizes[:12]), atol=1e-6)
    figures = generator.normal(0, 1, 12)
    process = GaussianProcessRegressor(library, alpha=0.1, optimizer=None).fit(sizes[:12], figures)
    weights = np.linalg.solve(columns[:12] @ columns[:12].T + 0.1 * np.eye(12), figures)
    np.testing.assert_allclose(columns[12:] @ (columns[:12].T @ weights), process.predict(sizes[12:]), atol=1e-5)


def test_equal_blocks_but_for_nothing_are_no_trouble():
    """Measured blocks of one kind and size leave nothing to tell sizes apart by."""
    parts = load_space("mobile-cpu").measured_parts
    alike = {workload: part for workload, part in parts.items() if part.block.kind == "mbconv"}
    measured = dict.fromkeys(list(alike)[:LEAST_BLOCKS], 0.25)
    found = estimate_blocks(parts, measured)
    assert set(found.ratios) == set(parts) - set(measured)
    assert all(ratio == pytest.approx(0.25, rel=1e-3) for ratio in found.ratios.values()) and found.typical_error < 1e-3
