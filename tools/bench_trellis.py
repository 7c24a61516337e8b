"""Speed of the trellis: samples per second, counting, costing, restricted resampling, and the exact optimum.

Usage: python tools/bench_trellis.py [--json] [--repeats N]

Costs are synthetic (seeded, larger for larger work), so the figures are those of the algorithms alone. Every figure is the
best of several repeats, since a shared machine only ever adds time.
"""

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from hwnas.ir.block import block_network
from hwnas.ir.blocks import Head, Identity, MBConv, ShuffleUnit, Stem
from hwnas.ir.costs import CostModel
from hwnas.ir.shape import TensorShape
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.ir.steps import Edge
from hwnas.ir.trellis import Trellis

SAMPLES = 200_000
SHARES = (1.0, 0.5, 1e-3, 1e-9, 1e-18)


class SyntheticLatency:
    """Milliseconds that grow with the MACs, and are as uneven as measured ones."""

    unit = "ms"
    constant = 0.1

    def __init__(self, seed: int) -> None:
        self._generator = np.random.default_rng(seed)

    def edge_cost(self, edge: Edge) -> float:
        macs = block_network(edge.block, edge.input_shape).macs
        return (0.02 + macs / 2e8) * float(self._generator.uniform(0.6, 1.6))


def mobile_space() -> SearchSpace:
    """22 decisions between 9 options: inverted residuals and depth."""
    layers: list[Fixed | Decision] = [Fixed("stem", Stem(16))]
    widths = [16] + [24] * 4 + [32] * 4 + [64] * 4 + [112] * 4 + [184] * 4 + [352]
    strides = [1] + [2, 1, 1, 1] * 2 + [2, 1, 1, 1] + [1, 1, 1, 1] + [2, 1, 1, 1] + [1]
    shapes = [(kernel, expansion) for kernel in (3, 5) for expansion in (1, 3, 4, 6)]
    for index, (width, stride) in enumerate(zip(widths, strides, strict=True)):
        options: dict[str, Any] = {f"k{kernel}_e{expansion}": MBConv(width, kernel, expansion, stride)
                                   for kernel, expansion in shapes}
        keeps = index and stride == 1 and width == widths[index - 1]
        options["skip"] = Identity() if keeps else MBConv(width, 7, 6, stride)
        layers.append(Decision(f"block{index + 1}", options))
    return SearchSpace("bench-22x9", TensorShape(3, 224, 224), (*layers, Fixed("head", Head(1000, 1504))))


def shuffle_space() -> SearchSpace:
    """20 decisions between 4 options: shuffle units."""
    layers: list[Fixed | Decision] = [Fixed("stem", Stem(16))]
    for stage, (width, repeats) in enumerate([(64, 4), (160, 4), (320, 8), (640, 4)]):
        for index in range(repeats):
            stride = 1 if index else 2
            options: dict[str, Any] = {f"k{kernel}": ShuffleUnit(width, kernel, stride) for kernel in (3, 5, 7)}
            options["xception"] = ShuffleUnit(width, 3, stride, xception=True)
            layers.append(Decision(f"stage{stage + 1}_{index + 1}", options))
    return SearchSpace("bench-20x4", TensorShape(3, 224, 224), (*layers, Fixed("head", Head(1000, 1024))))


def budget_for_share(trellis: Trellis, share: float) -> float | None:
    """The budget that about this share of the space meets."""
    if share >= 1:
        return None
    low, high = trellis.min_cost(), trellis.max_cost()
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (low, middle) if trellis.count(middle) > share * trellis.space.size else (middle, high)
    return high


def seconds(action: Callable[[], object], repeats: int) -> float:
    """The shortest of several runs."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter_ns()
        action()
        times.append(time.perf_counter_ns() - start)
    return min(times) / 1e9


def _count_afresh(waiting: list[Trellis], budget: float | None) -> int:
    return waiting.pop().count(budget)


def _sample_afresh(trellis: Trellis, budget: float | None) -> np.ndarray:
    return trellis.restrict({}).sample_indices(1, budget)


def measure(space: SearchSpace, costs: CostModel, repeats: int) -> dict[str, Any]:
    trellis = Trellis(space, costs)
    decisions = [decision.name for decision in space.decisions]
    generator = np.random.default_rng(0)
    budgets = []
    for share in SHARES:
        if share * space.size < 10:
            continue
        budget = budget_for_share(trellis, share)
        fresh = [Trellis(space, costs) for _ in range(repeats)]  # so that nothing is cached
        for one in fresh:
            one.min_cost()
        trellis.sample_indices(1, budget)
        seconds_drawing = seconds(partial(trellis.sample_indices, SAMPLES, budget, 1), repeats)
        budgets.append({
            "share": trellis.count(budget) / space.size,
            "budget_ms": budget,
            "samples_per_s": SAMPLES / seconds_drawing,
            "count_ms": 1e3 * seconds(partial(_count_afresh, fresh, budget), repeats),
            "first_sample_ms": 1e3 * seconds(partial(_sample_afresh, trellis, budget), 3),
        })
    indices = trellis.sample_indices(SAMPLES)
    budget = budget_for_share(trellis, 0.1) or trellis.max_cost()
    parents = trellis.sample(2, budget)
    crossing = {name: {parents[0].choices[name], parents[1].choices[name]} for name in decisions}
    mutated = [str(name) for name in generator.choice(decisions, 3, replace=False)]
    scores = {decision.name: generator.normal(size=len(decision.options)) for decision in space.decisions}
    return {
        "space": space.name,
        "size": space.size,
        "budgets": budgets,
        "costs_per_s": SAMPLES / seconds(lambda: trellis.costs_of(indices), repeats),
        "restrict_ms": 1e3 * seconds(lambda: trellis.restrict(crossing), repeats),
        "crossover_ms": 1e3 * seconds(lambda: trellis.restrict(crossing).sample(1, budget), repeats),
        "mutation_ms": 1e3 * seconds(lambda: trellis.resample(parents[0], mutated, budget), repeats),
        "best_ms": 1e3 * seconds(lambda: trellis.best(scores, budget), repeats),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    results = [measure(space, SyntheticLatency(seed), arguments.repeats)
               for seed, space in enumerate([mobile_space(), shuffle_space()])]
    if arguments.json:
        print(json.dumps(results, indent=1))
        return
    for result in results:
        print(f"{result['space']}  ({result['size']:.3g} networks)")
        for row in result["budgets"]:
            print(f"  share {row['share']:8.2g}   {row['samples_per_s']:12,.0f} samples/s   count {row['count_ms']:7.2f} ms   "
                  f"first sample {row['first_sample_ms']:7.2f} ms")
        print(f"  costs_of {result['costs_per_s']:,.0f} networks/s   restrict {result['restrict_ms']:.2f} ms   crossover "
              f"{result['crossover_ms']:.2f} ms   mutation {result['mutation_ms']:.2f} ms   best {result['best_ms']:.1f} ms")


if __name__ == "__main__":
    main()
