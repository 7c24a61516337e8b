"""Reference networks: MACs and parameters beside what was published; with --device, timed here and ranked."""

from collections import Counter
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hwnas.cli.console import ms, print_facts, print_json, print_table, progress_bar, quantity, say, stdout
from hwnas.errors import InputError

if TYPE_CHECKING:
    from hwnas.ir.network import Node
    from hwnas.profiling.ranking import RankedNetwork, Ranking
    from hwnas.spaces.reference import ReferenceNetwork

_FEW_OPERATIONS = 5  # more in one layer are counted rather than listed


def networks_command(
    name: Annotated[str | None, typer.Argument(help="A network's name, for its details; all when left out.")] = None,
    device: Annotated[str | None, typer.Option(help="Time them on this target; see 'hwnas devices'.")] = None,
    only: Annotated[str | None, typer.Option(help="Names of networks, with commas between them; all when left out.")] = None,
    threads: Annotated[int, typer.Option(help="Threads of the runtime.")] = 1,
    precision: Annotated[str, typer.Option(help="What the runtime computes in.")] = "fp32",
    batch_size: Annotated[int, typer.Option(help="Images a call.", min=1, max=4096)] = 1,
    plot: Annotated[Path | None, typer.Option(help="Draw accuracy against latency: a .png, .svg, .pdf or .html file.")] = None,
    output: Annotated[Path | None, typer.Option(help="File of the measurements; by default under network_latencies/.")] = None,
    max_minutes: Annotated[float, typer.Option(help="Stop measuring after this long.", min=0.0)] = 30.0,
    restart: Annotated[bool, typer.Option("--restart", help="Discard what is there and measure again.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    names = None if only is None else [one.strip() for one in only.split(",") if one.strip()]
    if name is not None and names is not None:
        raise InputError("A name shows one network and --only chooses several: give one of them.")
    for option, given in (("--plot", plot), ("--output", output), ("--restart", restart or None)):
        if given is not None and device is None:
            raise InputError(f"{option} is about measured latencies: add --device D, one of those of 'hwnas devices'.")
    chosen = _choose([name] if name is not None else names)
    if device is not None:
        _rank(chosen, device, threads, precision, batch_size, plot, output, max_minutes, restart, json)
    elif json:
        print_json([_document(network) for network in chosen])
    elif name is not None:
        _print_details(chosen[0])
    else:
        print_table("", ("network", "MACs", "published", "parameters", "published", "top-1 %", "source"), [
            (network.name, quantity(network.network.macs), _optional(network.published.macs),
             quantity(network.network.parameters), _optional(network.published.parameters), _accuracy(network.published.top1),
             network.published.source) for network in chosen])


def _choose(names: Sequence[str] | None) -> "list[ReferenceNetwork]":
    """The networks of these names, in their own order and each once; all for None."""
    from hwnas.spaces.networks import NETWORKS, load_network

    if names is not None and not names:
        raise InputError("--only takes names of networks with commas between them, but got none: 'hwnas networks' lists them.")
    if names is None:
        return list(NETWORKS.values())
    wanted = {load_network(name).name for name in names}
    return [network for network in NETWORKS.values() if network.name in wanted]


def _document(network: "ReferenceNetwork") -> dict[str, Any]:
    """What scripts read of a network."""
    return {"name": network.name, "macs": network.network.macs, "parameters": network.network.parameters,
            "published": vars(network.published), "parameters_by_kind": network.network.parameters_by_kind, "note": network.note}


def _print_details(reference: "ReferenceNetwork") -> None:
    network, published = reference.network, reference.published
    kinds = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in network.parameters_by_kind.items() if count)
    facts: list[tuple[str, object]] = [("input", network.input_shape), ("output", network.output_shape),
             ("MACs", f"{network.macs:,}{_published(network.macs, published.macs)}"),
             ("parameters", f"{network.parameters:,}{_published(network.parameters, published.parameters)}"), ("", kinds)]
    if published.top1 is not None:
        facts.append(("published top-1", f"{_accuracy(published.top1)} %"))
    facts.append(("source", published.source))
    if reference.note:
        facts.append(("note", reference.note))
    if reference.architecture is not None:
        path = reference.architecture()
        facts.append((f"path of {path.space}", path))
    print_facts(reference.name, facts)
    stdout.print()
    rows = []
    for layer, group in groupby(network.nodes, key=lambda node: node.name.partition("/")[0]):
        nodes = list(group)
        rows.append((layer, nodes[-1].shape, f"{sum(node.macs for node in nodes):,}", " ".join(_operations(nodes))))
    print_table("", ("layer", "output", "MACs", "operations"), rows)


def _operations(nodes: "Sequence[Node]") -> list[str]:
    """The convolutions and linear layers of a block, as `1x1`, `3x3/2-depthwise` or `linear`; of many, how often each occurs."""
    from hwnas.ir.layers import Conv, Linear

    found = []
    for node in nodes:
        if isinstance(node.layer, Conv):
            groups, stride = node.layer.groups, node.layer.stride
            kind = "" if groups == 1 else "-depthwise" if groups == node.input_shapes[0].channels else f"-{groups}-groups"
            found.append("x".join(map(str, node.layer.kernel)) + (f"/{stride}" if stride > 1 else "") + kind)
        elif isinstance(node.layer, Linear):
            found.append("linear")
    if len(found) <= _FEW_OPERATIONS:
        return found
    return [f"{count}*{operation}" for operation, count in Counter(found).items()]


def _rank(chosen: "list[ReferenceNetwork]", device: str, threads: int, precision: str, batch_size: int, plot: Path | None,
          output: Path | None, max_minutes: float, restart: bool, json: bool) -> None:
    from hwnas.profiling.anchor import LARGE_ANCHOR
    from hwnas.profiling.device import open_device
    from hwnas.profiling.ranking import TIMING, default_ranking_path, rank_networks
    from hwnas.profiling.rounds import RoundsPlan
    from hwnas.report.ranking import check_picture_path, draw_ranking
    from hwnas.runtimes.base import RuntimeConfig
    from hwnas.spaces.networks import NETWORKS

    if plot is not None:
        check_picture_path(plot)
    # one yardstick for all of them, so that they share a file: that of large images, which all but two have
    with open_device(device, RuntimeConfig(threads, precision), anchor=LARGE_ANCHOR) as opened:
        path = output or default_ranking_path(opened.environment(batch_size), batch_size)
        say(f"Timing {len(chosen)} network(s) on {device}, {threads} thread(s), {precision}, into {path}; "
            "an interrupted run continues.")
        with progress_bar("networks") as bar:
            ranking = rank_networks(NETWORKS.values(), opened, path, only=[network.name for network in chosen],
                                    batch_size=batch_size, plan=RoundsPlan(max_minutes=max_minutes, timing=TIMING),
                                    restart=restart, progress=bar)
    if plot is not None:
        draw_ranking(ranking, plot)
        say(f"Picture: {plot}")
    for name, reason in ranking.refused.items():
        say(f"{name} was left out: {reason}")
    if ranking.unfinished:
        say(f"The time was over before {', '.join(ranking.unfinished)} had every session: the same command completes them.")
    if json:
        _print_ranking_json(chosen, ranking)
    else:
        _print_ranking(ranking, device)


def _print_ranking_json(chosen: "list[ReferenceNetwork]", ranking: "Ranking") -> None:
    """Every network asked for, fastest first; those that were not timed come last, without a latency."""
    documents = {network.name: _document(network) | dict.fromkeys(("latency_ms", "lower_ms", "upper_ms", "on_front"))
                 for network in chosen}
    timed = {network.name: documents.pop(network.name) | {
        "latency_ms": network.latency_ms, "lower_ms": network.lower_ms, "upper_ms": network.upper_ms,
        "on_front": network.on_front} for network in ranking.networks}
    print_json([*timed.values(), *documents.values()])


def _print_ranking(ranking: "Ranking", device: str) -> None:
    columns = ("network", "latency ms", "95 % interval", "top-1 %", "best", "MACs", "parameters")
    print_table(f"Reference networks on {device}", columns, [
        (network.name, ms(network.latency_ms), f"{ms(network.lower_ms)} to {ms(network.upper_ms)}", _accuracy(network.top1),
         "*" if network.on_front else "", quantity(network.macs), quantity(network.parameters)) for network in ranking.networks])
    if ranking.front:
        stdout.print()
        stdout.print(_in_words(ranking.front, sum(network.top1 is not None for network in ranking.networks)), soft_wrap=True)


def _in_words(front: "Sequence[RankedNetwork]", judged: int) -> str:
    """The answer: what to take when time counts most, when accuracy does, and where to choose between."""
    fastest, best = front[0], front[-1]
    told = [f"{network.name} ({_accuracy(network.top1)} % in {ms(network.latency_ms)} ms)" for network in (fastest, best)]
    if len(front) == 1:
        return f"* Best of {judged}: {told[0]}, the fastest and the most accurate. Accuracy is as published, not measured here."
    between = ", ".join(network.name for network in front[1:-1])
    return (f"* Best of {judged}, no other is both faster and more accurate: from {told[0]}"
            f"{f', over {between},' if between else ''} to {told[1]}. Accuracy is as published, not measured here.")


def _published(counted: int, published: int | None) -> str:
    if published is None:
        return ""
    difference = counted / published - 1
    return f" (published: {quantity(published)}, {'equal' if not difference else f'{100 * difference:+.1f} %'})"


def _optional(count: int | None) -> str:
    return "" if count is None else quantity(count)


def _accuracy(top1: float | None) -> str:
    return "" if top1 is None else f"{top1:.1f}"
