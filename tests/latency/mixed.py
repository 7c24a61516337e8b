"""Spaces of two precisions, and tables of them whose makings are known: blocks, a constant, and a cost for every change."""

import itertools

import numpy as np

from hwnas.ir.blocks import Head, MBConv, Stem
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.latency.table import AnchorRecord, EntryRecord, LatencyTable, NetworkRecord
from hwnas.spaces.bit_widths import with_precisions

SEAM = 1.0


def make_space(channels=3, classes=5, bodies=4):
    """One network in int8 or fp32, layer by layer, but for a pool in fp32."""
    return with_precisions(SearchSpace("one", (channels, 16, 16), (
        Decision("stem", {"a": Stem(8)}), Decision("first", {"a": MBConv(8)}), Fixed("pool", Stem(8, 3, 2)),
        *(Decision(f"body{index}", {"a": MBConv(8, 3, 3 + index)}) for index in range(bodies)),
        Decision("head", {"a": Head(classes, 16)}))))


def all_networks(space):
    names = [decision.name for decision in space.decisions]
    return [space.architecture(dict(zip(names, options, strict=True)))
            for options in itertools.product(*(decision.options for decision in space.decisions))]


def changes(space, architecture):
    """Where two neighbours differ; the fixed layer is in fp32."""
    precisions = []
    for layer in space.layers:
        option = architecture.choices.get(layer.name, "fp32")
        precisions.append(option.rpartition("_")[2])
    return [layer.name for layer, before, now in zip(space.layers[1:], precisions, precisions[1:], strict=False) if before != now]


def make_table(space, seam_ratios, *, noise=0.0, networks=60, held_out=24):
    """Blocks that cost what they say, a constant, and a cost for every change of precision."""
    rng = np.random.default_rng(0)
    workloads = {part.workload for step in space.steps for edge in step.edges for part in edge.parts}
    entries = {key: EntryRecord(sessions=((float(rng.uniform(0.2, 1.0)),),), label="ok") for key in sorted(workloads)}
    every = all_networks(space)
    records = []
    for number, index in enumerate(rng.permutation(len(every))[:networks + held_out]):
        one = every[index]
        ratio = true_ratio(space, entries, seam_ratios, one) * (1 + noise * rng.standard_normal())
        records.append(NetworkRecord(choices=dict(one.choices), sessions=((ratio,),),
                                     role="fit" if number < networks else "held_out"))
    return LatencyTable(space, {"runtime": "onnxruntime-cpu", "threads": 1, "precision": "fp32", "batch_size": 1},
                        AnchorRecord(name="anchor", sha256="0" * 64, sessions_ms=(2.0,)), entries, tuple(records))


def true_ratio(space, entries, seam_ratios, one):
    return (0.3 + 0.8 * sum(entries[edge.workload].ratio for edge in space.path(one))
            + sum(seam_ratios[name] for name in changes(space, one)))


def equal_seams(space):
    """Which a fit without noise finds exactly."""
    return dict.fromkeys(seam_ratios(space), SEAM)


def true_latencies(table):
    """Of every network of a table of equal seams, in ms."""
    space = table.search_space
    return {one: true_ratio(space, table.entries, equal_seams(space), one) * table.anchor_ms for one in all_networks(space)}


def seam_ratios(space):
    return {layer.name: 0.1 + 0.05 * (index % 4) for index, layer in enumerate(space.layers)}
