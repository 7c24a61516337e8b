"""Why a block timed alone takes another time than inside a network, runtime by runtime.

    python tools/bench_context.py --runtimes onnxruntime-cpu openvino-cpu --spaces mobile-cpu spos --output docs/context.json

Of blocks that keep their shape, spread over the shapes of a space, networks of one, four and sixteen in a row are measured, every
layer with weights of its own, and a model that does next to nothing: one ReLU of one number. Then

- inside = (sixteen - four) / 12: what one more block costs within a network of about as many as networks have
- alone = one
- call: what the model that does next to nothing takes, whatever it computes
- rest = alone - inside - call: what else a model pays at its ends, where it is positive: layout changes, copies of inputs and
  outputs, layers that are not merged with those of a neighbour. Where it is negative, a block alone gains more than that by
  finding its weights and tensors still in the caches.

Sessions are kept in --folder: the same command goes on where a run was killed, or its time was over. Run it on a quiet machine:
nothing else may compute meanwhile.
"""

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from hwnas.errors import HwnasError, InputError
from hwnas.files import write_json
from hwnas.ir.block import Part
from hwnas.ir.layers import Activation
from hwnas.ir.network import Network, NetworkBuilder, build_network
from hwnas.ir.shape import TensorShape
from hwnas.ir.steps import Space
from hwnas.lower.onnx import to_onnx
from hwnas.profiling.anchor import anchor_for
from hwnas.profiling.device import Device, open_device
from hwnas.profiling.rounds import (
    RoundsPlan,
    measure_rounds,
    measurement_folder,
    open_journal,
    read_preparing_s,
    without_disturbed,
)
from hwnas.runtimes import RuntimeConfig
from hwnas.spaces.load import load_space

SCHEMA, JOURNAL_SCHEMA = "hwnas.context/1", "hwnas.context-journal/1"
CALL = "call"
LENGTHS = (1, 4, 16)
MOST_BLOCKS = 8  # of a space
SHARES = ("alone_over_inside", "call", "rest")

T = TypeVar("T")
Bar = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Split:
    """What a block costs, in ratios to the anchor.

    Attributes:
        alone: As a model of its own.
        inside: One more of it within a network.
        call: What every model costs whatever it computes.
    """

    alone: float
    inside: float
    call: float

    @property
    def rest(self) -> float:
        """What a block costs alone beyond inside and the call; negative where it costs less."""
        return self.alone - self.inside - self.call

    @property
    def shares(self) -> dict[str, float]:
        """What it costs more alone, and the two parts of that, over what it costs inside."""
        return {"alone_over_inside": self.alone / self.inside - 1, "call": self.call / self.inside,
                "rest": self.rest / self.inside}


def split_costs(chains: Mapping[int, float], call: float) -> Split:
    """Splits what a block costs alone.

    Args:
        chains: The ratios of one, four and sixteen in a row.
        call: The ratio of the model that does next to nothing.
    """
    one, few, many = LENGTHS
    return Split(chains[one], (chains[many] - chains[few]) / (many - few), call)


def call_network() -> Network:
    """A network that does next to nothing: what it takes is the call."""
    net = NetworkBuilder(TensorShape(1, 1, 1))
    return net.build(net.add("relu", Activation("relu"), net.input))


def spread_parts(space: Space, most: int = MOST_BLOCKS) -> list[Part]:
    """Blocks that keep their shape: as many of every shape, or of shapes far apart, and of a shape from few MACs to many.

    Raises:
        InputError: No block keeps its shape.
    """
    by_shape: dict[TensorShape, list[Part]] = {}
    for part in space.measured_parts.values():
        if part.network.output_shape == part.input_shape and part.network.output not in part.network.vectors:
            by_shape.setdefault(part.input_shape, []).append(part)
    if not by_shape:
        raise InputError(f"A block must keep its shape to follow itself, but none of {space.name!r} does: choose another space.")
    shapes = _spread(list(by_shape.values()), most)
    return [part for parts in shapes for part in _spread(sorted(parts, key=lambda part: part.network.macs), most // len(shapes))]


def _spread(items: Sequence[T], count: int) -> list[T]:
    """So many items at even distances, the same to both ends; all where there are no more."""
    count = min(count, len(items))
    return [items[(2 * index + 1) * len(items) // (2 * count)] for index in range(count)]


def chain_networks(parts: Iterable[Part]) -> dict[str, Network]:
    """What to measure: the model that does next to nothing, and each block in a row of every length."""
    networks = {CALL: call_network()}
    for part in parts:
        for length in LENGTHS:
            blocks = [(f"block{number}", part.block) for number in range(1, length + 1)]  # a name of its own: weights of its own
            networks[_key(part, length)] = build_network(part.input_shape, blocks)
    return networks


def _key(part: Part, length: int) -> str:
    return f"{length} x {part.workload}"


def measure(space: Space, device: Device, folder: Path, plan: RoundsPlan, bar: Bar) -> dict[str, Any] | None:
    """Everything that the benchmark says of a space on a device; None where the time was over before.

    Args:
        space: Whose blocks.
        device: Where.
        folder: For the journal.
        plan: How much.
        bar: Called with (sessions done, sessions planned, key).

    Raises:
        InputError: No block keeps its shape, the device refuses all of them, or that which does next to nothing.
        UnavailableError: The device cannot be reached.
    """
    environment, parts = device.environment(1), spread_parts(space)
    journal = folder / measurement_folder(environment) / f"{space.name}.context"
    refused: dict[str, str] = {}
    header = {"schema": JOURNAL_SCHEMA, "space_hash": space.hash, "environment": environment}
    measured = open_journal(journal, header, refused=refused)
    networks = chain_networks(parts)
    models = {key: lambda network=network: to_onnx(network).SerializeToString() for key, network in networks.items()}
    measure_rounds(models, measured, journal, device, plan, progress=bar, preparing=bar, refused=refused)
    if CALL in refused:
        raise InputError(refused[CALL])
    if any(len(measured.get(key, ())) < plan.min_sessions for key in networks if key not in refused):
        return None
    counted = without_disturbed({key: measured[key] for key in networks if key not in refused}, plan,
                                lambda key: plan.min_sessions)
    sessions = {key: [median(session.ratios) for session in found] for key, found in counted.items()}
    kept = [part for part in parts if all(_key(part, length) in sessions for length in LENGTHS)]
    if not kept:
        raise InputError(next(iter(refused.values())))
    seconds = sum(session.total_s for found in measured.values() for session in found) + read_preparing_s(journal)
    call = median(sessions[CALL])
    splits = {part.workload: split_costs({length: median(sessions[_key(part, length)]) for length in LENGTHS}, call)
              for part in kept}
    return {"runtime": environment["runtime"], "version": environment["runtime_version"], "space": space.name,
            "refused": len(parts) - len(kept), "minutes": seconds / 60, "sessions": sessions, **describe(splits)}


def describe(splits: Mapping[str, Split]) -> dict[str, Any]:
    """What is said of a space: each share of every block, and its median and range over blocks.

    A block of which one more costs nothing that can be told from noise has no shares, and is counted as lost.

    Raises:
        InputError: All are lost.
    """
    blocks: list[dict[str, Any]] = [
        {"workload": workload, "alone": one.alone, "inside": one.inside, "call_ratio": one.call, **one.shares}
        for workload, one in splits.items() if one.inside > 0]
    if not blocks:
        raise InputError("One more block must take longer than none, but of no block it does: measure on a quiet machine.")
    return {"blocks": blocks, "lost": len(splits) - len(blocks), **{share: _range(block[share] for block in blocks)
                                                                    for share in SHARES}}


def _range(shares: Iterable[float]) -> dict[str, float]:
    values = list(shares)
    return {"median": median(values), "least": min(values), "most": max(values)}


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for every runtime and space, as docs/latency.md shows them."""
    columns = ("runtime", "space", "blocks", "alone over inside", "a call", "rest", "range of the rest")
    lines = [(row["runtime"], row["space"], str(len(row["blocks"])), *(say_share(row[share]["median"]) for share in SHARES),
              f"{say_share(row['rest']['least'])} to {say_share(row['rest']['most'])}") for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *lines))


def say_share(share: float) -> str:
    """A share of what a block costs inside, with its sign."""
    return f"{100 * share:+.1f} %"


def show(console: Console, row: Mapping[str, Any]) -> None:
    """Prints what was found of a runtime and a space."""
    left_out = f"; {row['refused']} refused, {row['lost']} lost in noise" if row["refused"] or row["lost"] else ""
    view = Table(title=f"{row['runtime']} {row['version']}, {row['space']}: {len(row['blocks'])} blocks, {row['minutes']:.1f} "
                       f"minutes{left_out}", title_justify="left")
    for column in ("block", "alone", "inside", "alone over inside", "a call", "rest"):
        view.add_column(column, justify="left" if column == "block" else "right", overflow="fold")
    for block in row["blocks"]:
        view.add_row(block["workload"], f"{block['alone']:.4f}", f"{block['inside']:.4f}",
                     *(say_share(block[share]) for share in SHARES))
    view.add_section()
    for what in ("median", "least", "most"):
        view.add_row(what, "", "", *(say_share(row[share][what]) for share in SHARES))
    console.print(view)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtimes", nargs="+", default=["onnxruntime-cpu", "openvino-cpu"])
    parser.add_argument("--spaces", nargs="+", default=["mobile-cpu", "spos"])
    parser.add_argument("--folder", type=Path, default=Path("runs/context"))
    parser.add_argument("--output", type=Path, help="JSON file")
    parser.add_argument("--sessions", type=int, default=3, help="of every network")
    parser.add_argument("--max-minutes", type=float, default=10.0, help="for each runtime and space")
    arguments = parser.parse_args()
    plan = RoundsPlan(arguments.sessions, arguments.sessions, max_minutes=arguments.max_minutes)
    console = Console(width=170)
    spaces = [load_space(space) for space in arguments.spaces]
    rows = []
    with Progress(console=Console(stderr=True)) as progress:
        for runtime in arguments.runtimes:
            for space in spaces:
                try:
                    with open_device(runtime, RuntimeConfig(threads=1), anchor=anchor_for((1, *space.input_shape))) as device:
                        row = measure(space, device, arguments.folder, plan, _bar(progress, f"{runtime} {space.name}"))
                except HwnasError as error:
                    console.print(f"left out: {runtime}, {space.name}: {error}", soft_wrap=True)
                    continue
                if row is None:
                    console.print(f"{runtime}, {space.name}: not measured to the end; the same command goes on")
                    continue
                rows.append(row)
    for row in rows:
        show(console, row)
    if arguments.output:
        write_json(arguments.output, {"schema": SCHEMA, "rows": rows})
        print(markdown(rows))


def _bar(progress: Progress, what: str) -> Bar:
    task = progress.add_task(what)
    return lambda done, total, key: progress.update(task, completed=done, total=total)


if __name__ == "__main__":
    main()
