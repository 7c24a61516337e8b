"""What training a supernet costs, next to training one plain network: time and memory, as ratios within one run.

Usage: python tools/bench_supernet.py [--repeats N] [--batch-size N] [--device cpu] [--json] [--output FILE] [--goal]

- single path: a step on a path of the supernet, to a step of the same network on its own (goal: at most 1.05)
- mixture: a step of the weights of Gumbel-softmax training, to as many single-path steps as there are candidates (1.1)
- binary gates: an update of the architecture, to a single-path step (2.3)
- memory: the most that a process holds while it trains a path beyond its resting size, to that of the plain network (1.1)
- host: the share of a training run outside of forward, backward and the optimiser (0.02)

A step is forward, backward and the optimiser's update. The two sides of a ratio take turns; the ratio is the median over the
pairs. Single-path steps that a mixture is compared with are on uniformly drawn paths.
"""

import argparse
import gc
import json
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from hwnas.data import Dataset
from hwnas.data.dataset import Split, build_dataset
from hwnas.ir.costs import MacsCost
from hwnas.ir.steps import Space
from hwnas.ir.trellis import Trellis
from hwnas.lower.torch import to_torch
from hwnas.spaces.load import load_space
from hwnas.supernet.build import build_supernet
from hwnas.supernet.config import LoopConfig
from hwnas.supernet.differentiable import Differentiable, FBNet, Proxyless, differentiable_task
from hwnas.supernet.loop import Task, run_loop
from hwnas.supernet.paths import uniform_paths
from hwnas.supernet.retrain import network_task
from hwnas.supernet.single_path import SinglePath, single_path_task, spos_task

SINGLE_PATH = (("mobile-cpu", "options"), ("spos-cpu", "options"), ("fbnet-cpu", "options"), ("darts-cpu", "options"),
               ("spos-blocks-channels-cpu", "channels"), ("ofa-cpu", "elastic"))
MIXTURES = ("fbnet-cpu", "spos-cpu")
GATES = ("fbnet-cpu", "proxyless-tiny")
MEMORY = ("mobile-cpu", "spos-cpu")
GOALS = {"single path": 1.05, "mixture": 1.1, "binary gates": 2.3, "memory": 1.1, "host": 0.02}
_WARM_UP = 3


@dataclass(frozen=True)
class Ratio:
    """One figure.

    Attributes:
        what: A key of `GOALS`.
        space: Whose supernet.
        ratio: The median over the pairs.
        lower: Of the ratios, the 25th percentile.
        upper: The 75th.
        pairs: How many.
    """

    what: str
    space: str
    ratio: float
    lower: float
    upper: float
    pairs: int

    @property
    def meets_goal(self) -> bool:
        return self.ratio <= GOALS[self.what]


@dataclass(frozen=True)
class Bench:
    """What all measurements share: images, labels and how to wait for the device."""

    batch_size: int
    device: torch.device
    repeats: int

    def batch(self, space: Space) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn((self.batch_size, *space.input_shape), generator=generator).to(self.device)
        labels = torch.randint(space.classes, (self.batch_size,), generator=generator).to(self.device)
        return images.contiguous(memory_format=torch.channels_last), labels

    def placed(self, model: nn.Module) -> nn.Module:
        return model.to(device=self.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]

    def seconds(self, work: Callable[[], object]) -> float:
        self.wait()
        began = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - began

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def ratio(self, what: str, space: str, numerator: Callable[[int], object], denominator: Callable[[int], object],
              scale: float = 1.0) -> Ratio:
        """Lets both take turns, the one that begins by turns too."""
        ratios = []
        for number in range(-_WARM_UP, self.repeats):
            order = (numerator, denominator) if number % 2 else (denominator, numerator)
            seconds = {work: self.seconds(partial(work, max(number, 0))) for work in order}
            if number >= 0:
                ratios.append(seconds[numerator] / seconds[denominator] / scale)
        quartiles = statistics.quantiles(ratios, n=4)
        return Ratio(what, space, statistics.median(ratios), quartiles[0], quartiles[2], len(ratios))


def stepper(task: Task, images: Tensor, labels: Tensor) -> Callable[[int], None]:
    """A training step of a task, given its number."""
    parameters = [parameter for parameter in task.model.parameters() if parameter.requires_grad]
    outer = {id(each) for group in (task.outer.optimizer.param_groups if task.outer else []) for each in group["params"]}
    sgd = torch.optim.SGD([each for each in parameters if id(each) not in outer], lr=1e-3, momentum=0.9, foreach=True)

    def step(number: int) -> None:
        for parameter in parameters:
            parameter.grad = None
        task.backward(number, images, labels)
        sgd.step()

    return step


def single_path(bench: Bench, name: str, sharing: str) -> Ratio:
    """A step on a path, to a step of the same network on its own; a path for each pair."""
    space = load_space(name)
    supernet = build_supernet(space, sharing=sharing)
    bench.placed(supernet)
    rows = uniform_paths(space, 0, 1)
    images, labels = bench.batch(space)
    shared = stepper(single_path_task(supernet, rows, 0.1), images, labels)
    plain: dict[int, Callable[[int], None]] = {}

    def alone(number: int) -> None:
        plain[number](number)

    ratios = []
    for number in range(bench.repeats):
        module = to_torch(space.network(space.architectures(rows(number))[0]))
        bench.placed(module)
        plain = {number: stepper(network_task(module, 0.1), images, labels)}
        shared(number)  # both have what they allocate once, and their caches warm
        alone(number)
        turns = [(bench.seconds(partial(shared, number)), bench.seconds(partial(alone, number))) for _ in range(5)]
        ratios.append(statistics.median(mine / other for mine, other in turns))
    quartiles = statistics.quantiles(ratios, n=4)
    return Ratio("single path", f"{name} ({sharing})", statistics.median(ratios), quartiles[0], quartiles[2], len(ratios))


def differentiable(bench: Bench, name: str, settings: Differentiable) -> tuple[Task, Callable[[int], None], Space]:
    """The task of a differentiable method, and a step of single-path training of another supernet of the space."""
    space = load_space(name)
    trellis = Trellis(space, MacsCost())
    target = (trellis.min_cost() + trellis.max_cost()) / 2
    supernet = build_supernet(space)
    task = differentiable_task(supernet, settings, LoopConfig(epochs=2), MacsCost(), target, 1000)
    bench.placed(supernet)
    other = build_supernet(space)
    bench.placed(other)
    images, labels = bench.batch(space)
    return task, stepper(spos_task(other, SinglePath(), LoopConfig()), images, labels), space


def mixture(bench: Bench, name: str) -> Ratio:
    """A step of the weights with all candidates on, to as many single-path steps."""
    task, one, space = differentiable(bench, name, FBNet())
    images, labels = bench.batch(space)
    counts = {len(decision.options) for decision in space.decisions}
    (candidates,) = counts
    every = stepper(task, images, labels)

    def paths(number: int) -> None:
        for index in range(candidates):
            one(number * candidates + index)

    return bench.ratio("mixture", f"{name}, {candidates} candidates", every, paths)


def binary_gates(bench: Bench, name: str) -> Ratio:
    """An update of the architecture, to a single-path step; on paths of their own, so more pairs are needed."""
    task, one, space = differentiable(bench, name, Proxyless())
    batch = bench.batch(space)
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    assert task.outer is not None
    update = task.outer.update
    return bench.ratio("binary gates", name, lambda number: update(number, batch, batch, sgd), one)


def memory(bench: Bench, name: str) -> Ratio:
    """What training steps on a path add to a process at rest, to what those of the plain network add.

    Batches are larger here, so that activations, not the allocator's pages, are what is compared.
    """
    bench = replace(bench, batch_size=4 * bench.batch_size)
    context = multiprocessing.get_context("spawn")
    ratios = []
    for row in range(5):
        peaks = []
        for is_supernet in (True, False):
            with context.Pool(1) as pool:
                peaks.append(pool.apply(_peak_bytes, (bench, name, row, is_supernet)))
        ratios.append(peaks[0] / peaks[1])
    quartiles = statistics.quantiles(ratios, n=4)
    title = f"{name}, batches of {bench.batch_size}"
    return Ratio("memory", title, statistics.median(ratios), quartiles[0], quartiles[2], len(ratios))


def _peak_bytes(bench: Bench, name: str, number: int, is_supernet: bool) -> int:
    """Of this process: what it grows by from a model at rest to the most that three steps take."""
    torch.set_num_threads(1)
    space = load_space(name)
    rows = uniform_paths(space, 0, 1)
    images, labels = bench.batch(space)
    if is_supernet:
        task = single_path_task(build_supernet(space), lambda step: rows(number), 0.1)
    else:
        task = network_task(to_torch(space.network(space.architectures(rows(number))[0])), 0.1)
    bench.placed(task.model)
    step = stepper(task, images, labels)
    gc.collect()
    is_cuda = bench.device.type == "cuda"
    if not is_cuda:
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far (Linux)
    before = torch.cuda.memory_allocated(bench.device) if is_cuda else _resident_bytes("VmRSS")
    for _ in range(3):
        step(0)
    return (torch.cuda.max_memory_allocated(bench.device) if is_cuda else _resident_bytes("VmHWM")) - before


def _resident_bytes(field: str) -> int:
    """A figure of this process's memory as Linux tells it: what is resident now (VmRSS), or the most that was (VmHWM)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024


def host(bench: Bench, name: str) -> Ratio:
    """The share of a run that is neither forward and backward nor the optimiser's update."""
    space = load_space(name)
    supernet = build_supernet(space)
    inner = spos_task(supernet, SinglePath(), LoopConfig())
    spent = began = 0.0
    marks: list[tuple[float, float]] = []  # the clock, and seconds spent on computing, at the end of each step

    def backward(step: int, images: Tensor, labels: Tensor) -> Tensor:
        nonlocal spent
        losses: list[Tensor] = []
        spent += bench.seconds(lambda: losses.append(inner.backward(step, images, labels)))
        return losses[0]

    def before_update(*_: object) -> None:
        nonlocal began
        bench.wait()
        began = time.perf_counter()

    def after_update(*_: object) -> None:
        nonlocal spent
        bench.wait()
        spent += time.perf_counter() - began

    def note(*_: object) -> None:
        marks.append((time.perf_counter(), spent))

    shares = []
    dataset = noise(space, bench.batch_size * bench.repeats)
    config = LoopConfig(epochs=1, batch_size=bench.batch_size, device=str(bench.device), checkpoint_seconds=1e9)
    hooks = register_optimizer_step_pre_hook(before_update), register_optimizer_step_post_hook(after_update)
    try:
        for _ in range(5):
            marks.clear()
            with tempfile.TemporaryDirectory() as folder:
                run_loop(Task(supernet, backward, inner.describe), dataset, config, {}, Path(folder), note)
            (first, spent_first), (last, spent_last) = marks[0], marks[-1]
            shares.append(1 - (spent_last - spent_first) / (last - first))
    finally:
        for hook in hooks:
            hook.remove()
    quartiles = statistics.quantiles(shares, n=4)
    return Ratio("host", name, statistics.median(shares), quartiles[0], quartiles[2], len(shares))


def noise(space: Space, images: int) -> Dataset:
    """A dataset of the space's shape and classes."""
    rng = np.random.default_rng(0)

    def split(count: int) -> Split:
        return Split(rng.integers(0, 256, (count, *space.input_shape), dtype=np.uint8), np.arange(count) % space.classes)

    few = space.classes
    return build_dataset("noise", split(images), split(few), split(few), tuple(map(str, range(space.classes))))


def measure(bench: Bench, wanted: Collection[str], say: Callable[[Ratio], None]) -> list[Ratio]:
    """All figures, each told as soon as it is there."""
    plan: list[tuple[str, Callable[[], Ratio]]] = [
        *(("single path", partial(single_path, bench, name, sharing)) for name, sharing in SINGLE_PATH),
        *(("mixture", partial(mixture, bench, name)) for name in MIXTURES),
        *(("binary gates", partial(binary_gates, bench, name)) for name in GATES),
        *(("memory", partial(memory, bench, name)) for name in MEMORY), ("host", partial(host, bench, "mobile-cpu"))]
    found = []
    for _, work in [one for one in plan if one[0] in wanted]:
        found.append(work())
        say(found[-1])
        gc.collect()
    return found


def markdown(document: Mapping[str, Any]) -> str:
    """The table that docs/training.md quotes."""
    rows = ["| figure | space | ratio | middle half | goal |", "| --- | --- | --- | --- | --- |"]
    for one in document["ratios"]:
        goal = document["goals"][one["what"]]
        rows.append(f"| {one['what']} | {one['space']} | {one['ratio']:.3f} | {one['lower']:.3f} to {one['upper']:.3f} | "
                    f"{'met' if one['ratio'] <= goal else 'not met'} (at most {goal:g}) |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20, help="pairs of each ratio")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--what", nargs="+", choices=GOALS, default=list(GOALS), help="which figures")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("--goal", action="store_true", help="exit 1 unless every goal is met")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    bench = Bench(given.batch_size, torch.device(given.device), given.repeats)

    def say(one: Ratio) -> None:
        if not given.json:
            print(f"{one.what:14} {one.space:38} {one.ratio:6.3f}  ({one.lower:.3f} to {one.upper:.3f})  goal "
                  f"{GOALS[one.what]:g} {'met' if one.meets_goal else 'not met'}", flush=True)

    found = measure(bench, given.what, say)
    document = {"batch_size": given.batch_size, "threads": given.threads, "device": given.device, "repeats": given.repeats,
                "goals": GOALS, "ratios": [asdict(one) for one in found]}
    if given.json:
        print(json.dumps(document))
    if given.output:
        given.output.write_text(json.dumps(document, indent=1) + "\n")
    return int(given.goal and not all(one.meets_goal for one in found))


if __name__ == "__main__":
    sys.exit(main())
