"""Small things that go through the pipeline in seconds: a space for 16x16 digits, and tables whose truth is known."""

import itertools

import numpy as np

from hwnas.ir.blocks import ConvBlock, Head, Identity, MBConv, Stem
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.latency.table import AnchorRecord, EntryRecord, LatencyTable, NetworkRecord

DATA = "digits?size=16&train=200&validation=60&test=50"


def make_space(name="digits", classes=10, channels=1):
    """27 networks; the width chosen first decides what the next layer costs."""
    return SearchSpace(name, (channels, 16, 16), (
        Fixed("stem", Stem(4)),
        Decision("width", {"narrow": ConvBlock(8, 3, 2), "wide": ConvBlock(16, 3, 2), "mb": MBConv(8, 5, 3, 2)}),
        Decision("body", {"k1": ConvBlock(8, 1), "k3": ConvBlock(8), "k5": ConvBlock(8, 5)}),
        Decision("tail", {"conv": ConvBlock(8), "mb": MBConv(8, 3, 2), "skip": Identity()}),
        Fixed("head", Head(classes)),
    ))


def make_table(space=None, *, held_out=19, error=0.1, runtime="onnxruntime-cpu"):
    """A table of random ratios with an anchor of 1 ms, whose held-out networks are all slower than predicted by `error`.

    With 19 of them that error is the 95 % interval in the hour of the table.
    """
    space = space or make_space()
    generator = np.random.default_rng(0)
    workloads = {edge.workload for step in space.steps for edge in step.edges if edge.block.kind != "identity"}
    entries = {key: EntryRecord(sessions=((float(generator.uniform(0.1, 1.0)),),), label="ok") for key in sorted(workloads)}
    environment = {"runtime": runtime, "threads": 1, "precision": "fp32", "batch_size": 1}
    bare = LatencyTable(space, environment, AnchorRecord(name="anchor", sha256="0" * 64, sessions_ms=(1.0,)), entries, ())
    chosen = all_networks(space)[:6 + held_out]
    latencies = [one.latency_ms for one in bare.predict_many(chosen)]
    return bare.with_networks([
        NetworkRecord(choices=dict(one.choices), sessions=((latency * (1 + error * (index >= 6)),),),
                      role="held_out" if index >= 6 else "fit")
        for index, (one, latency) in enumerate(zip(chosen, latencies, strict=True))])


def all_networks(space):
    names = [decision.name for decision in space.decisions]
    return [space.architecture(dict(zip(names, options, strict=True)))
            for options in itertools.product(*(decision.options for decision in space.decisions))]
