"""What the page on networks says of a ranking: the front as it is marked, and the extreme pairs, by hand and by brute force."""

import numpy as np

from tests.tools.test_schemes import load_tool

tool = load_tool("list_networks")


def network(name, macs, latency_ms, top1=70.0, on_front=False):
    return {"name": name, "macs": macs, "latency_ms": latency_ms, "lower_ms": 0.98 * latency_ms, "upper_ms": 1.02 * latency_ms,
            "top1": top1, "on_front": on_front}


ENVIRONMENT = {"device": "Acme 3000", "runtime": "onnxruntime-cpu", "runtime_version": "1.0", "precision": "fp32", "threads": 1}
NETWORKS = [network("quick", 100_000_000, 1.0, 60.0, True), network("shuffled", 102_000_000, 2.5, 59.0),
            network("unjudged", 101_000_000, 9.0, None), network("plain", 400_000_000, 2.6, 72.0, True),
            network("deep", 2_000_000_000, 12.5, 76.13, True)]


def test_what_is_said_of_a_ranking():
    assert tool.markdown({"environment": ENVIRONMENT, "networks": NETWORKS}).splitlines() == [
        "Acme 3000, onnxruntime-cpu 1.0, fp32, 1 thread. 5 networks were timed; of the 4 whose accuracy was published, no other "
        "is both faster and more accurate than one of these:", "",
        "| network | top-1 | measured | 95 % interval | MACs |", "| --- | --- | --- | --- | --- |",
        "| quick | 60.0 % | 1.000 ms | 0.9800 to 1.020 | 100.00 M |",
        "| plain | 72.0 % | 2.600 ms | 2.548 to 2.652 | 400.00 M |",
        "| deep | 76.1 % | 12.50 ms | 12.25 to 12.75 | 2,000.00 M |", "",
        "What MACs do not say, of the same networks:", "",
        "- MACs alike (within 5 %), latency least alike: shuffled has 1.02 times the MACs of quick and takes 2.50 times as long",
        "- latency alike (within 5 %), MACs least alike: plain has 3.92 times the MACs of shuffled and takes 1.04 times as long"]


def test_nothing_is_said_of_pairs_where_none_is_alike():
    lines = tool.markdown({"environment": ENVIRONMENT | {"threads": 2}, "networks": [NETWORKS[0], NETWORKS[-1]]}).splitlines()
    assert "2 threads. 2 networks" in lines[0]
    assert lines[-2:] == ["- MACs alike (within 5 %), latency least alike: no pair",
                          "- latency alike (within 5 %), MACs least alike: no pair"]


def test_no_other_pair_is_less_alike():
    generator = np.random.default_rng(0)
    macs, latencies = generator.uniform(1e8, 2e8, 30), generator.uniform(1, 2, 30)
    one, other = tool.least_alike([network("", *figures) for figures in zip(macs, latencies, strict=True)], alike="macs",
                                  unlike="latency_ms")
    is_alike = np.abs(np.log(np.divide.outer(macs, macs))) <= np.log(1.05)
    assert one["latency_ms"] / other["latency_ms"] == np.divide.outer(latencies, latencies)[is_alike].max() > 1
    assert abs(np.log(one["macs"] / other["macs"])) <= np.log(1.05)
