"""Several processes: they train what one does, agree on when to stop, and do not outlive each other for long."""

import dataclasses
import json
import os
import socket
import subprocess
import sys

import pytest
import torch
from torch.nn import functional

from hwnas.errors import InputError, UnavailableError
from hwnas.supernet import load_supernet, train_supernet
from hwnas.supernet.batches import Feed
from hwnas.supernet.checkpoint import load_checkpoint
from hwnas.supernet.distributed import Group, joined
from hwnas.supernet.loop import run_loop
from tests.supernet.loop_samples import CONFIG, EVERYTHING, Mixed, child_environment, mixed_task, plain_network, plain_task
from tests.supernet.samples import CONFIG as SUPERNET_CONFIG

TWO = dataclasses.replace(EVERYTHING, accumulation=1, precision="fp32", log_steps=0)

# What each of two processes does, one scenario after the other, and tells in lines "scenario: ...".
SCENARIOS = """
import dataclasses, os, signal, sys
from datetime import timedelta
from pathlib import Path
import torch
from hwnas.errors import HwnasError
from hwnas.ir.costs import MacsCost
from hwnas.supernet import distributed
from hwnas.supernet.differentiable import FBNet, Proxyless, differentiable_task
from hwnas.supernet.layered import LayeredSupernet
from hwnas.supernet.loop import run_loop
from tests.supernet.loop_samples import CONFIG, Mixed, mixed_task, plain_network, plain_task
from tests.supernet.samples import interrupt, tiny_dataset
from tests.supernet.test_differentiable import CONFIG as SEARCH, middle, row_space
from tests.supernet.test_distributed import TWO

torch.set_num_threads(1)
folder, dataset = Path(sys.argv[1]), tiny_dataset()
distributed.TIMEOUT = timedelta(seconds=60)

def tell(scenario, text):
    print(f"{scenario}: {text}", flush=True)

def broken(model, rank, step):
    inner = plain_task(model)
    def backward(now, images, labels):
        if group.rank == rank and now == step:
            images = images * float("inf")
        return inner.backward(now, images, labels)
    return dataclasses.replace(inner, backward=backward)

with distributed.joined("cpu") as group:
    model = Mixed(2 + group.rank)  # rank 0's weights count
    steps = []
    run_loop(mixed_task(model), dataset, TWO, {}, folder / "mixed", lambda step, *_: steps.append(step), group=group)
    tell("mixed", f"{sum(p.double().abs().sum().item() for p in model.state_dict().values())!r} {len(steps)}")

    for name, settings in {"fbnet": FBNet(), "proxyless": Proxyless()}.items():
        supernet, target = LayeredSupernet(row_space(), 1 + group.rank), middle(row_space())
        steps_in_all = int(len(dataset.train) * (1 - settings.share)) // SEARCH.batch_size * SEARCH.epochs
        run_loop(differentiable_task(supernet, settings, SEARCH, MacsCost(), target, steps_in_all), dataset, SEARCH, {},
                 folder / name, group=group)
        architecture = supernet.architecture
        tell(name, f"{architecture.expected_cost().item() / target} {architecture.logits.tolist()}")

    try:
        run_loop(broken(plain_network(), 1, 4), dataset, CONFIG, {}, folder / "nan", group=group)
    except HwnasError as error:
        tell("nan", f"{error.exit_code} {error}")

    def backward(step, images, labels):
        if group.rank == 1 and step == 6:
            interrupt()
        return task.backward(step, images, labels)
    task = plain_task(plain_network())
    try:
        run_loop(dataclasses.replace(task, backward=backward), dataset, CONFIG, {}, folder / "stopped", group=group)
    except KeyboardInterrupt:
        tell("stopped", "interrupted")

    def backward(step, images, labels):
        if group.rank == 1 and step == 3:
            os._exit(9)
        return task.backward(step, images, labels)
    try:
        run_loop(dataclasses.replace(task, backward=backward), dataset, CONFIG, {}, folder / "dead", group=group)
    except HwnasError as error:
        tell("dead", f"{error.exit_code} {error}")
"""

HANGS = """
import sys, time
from datetime import timedelta
from pathlib import Path
from hwnas.errors import UnavailableError
from hwnas.supernet import distributed

distributed.TIMEOUT = timedelta(seconds=5)
with distributed.joined("cpu") as group:
    group.wait()
    if group.rank == 1:
        time.sleep(600)
    try:
        group.wait()
    except UnavailableError as error:
        print(error, flush=True)
"""

TRAIN = """
import dataclasses, json, os, sys
from pathlib import Path
from hwnas.supernet import train_supernet
from tests.supernet.samples import CONFIG, tiny_dataset, tiny_space
shown = []
result = train_supernet(tiny_space(), tiny_dataset(), sys.argv[1], dataclasses.replace(CONFIG, batch_size=16, threads=1),
                        overwrite=True, progress=lambda *told: shown.append(told))
Path(f"{sys.argv[1]}.{os.environ['RANK']}").write_text(json.dumps(
    {"steps": result.steps, "losses": result.epoch_losses, "shown": len(shown)}))
"""


def free_port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def two(script: str, *arguments: str) -> list[subprocess.Popen]:
    """Starts two ranks, without an agent that would end the one when the other ends."""
    environment = {**child_environment(), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                             text=True, env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in (0, 1)]


@pytest.fixture(scope="module")
def scenarios(tmp_path_factory):
    """What two processes said in each scenario, by rank, and their folder."""
    folder = tmp_path_factory.mktemp("two")
    children = two(SCENARIOS, str(folder))
    try:
        told = [child.communicate(timeout=200) for child in children]
    finally:
        for child in children:
            child.kill()
    assert [child.returncode for child in children] == [0, 9], told
    return [dict(line.split(": ", 1) for line in out.splitlines()) for out, _ in told], folder


def test_two_processes_train_what_one_does_in_halves(dataset, scenarios, tmp_path):
    """With dropout, clipping, an average and an outer update; batch norm sees halves in both."""
    (first, second), folder = scenarios
    (sum_first, steps_first), (sum_second, steps_second) = (each["mixed"].split() for each in (first, second))
    assert sum_first == sum_second  # the ranks end alike, to the bit
    assert (steps_first, steps_second) == ("18", "0")  # one shows progress
    feeds = [Feed(dataset, TWO, Group(rank, 2), torch.device("cpu"), 0.4, 1) for rank in (0, 1)]
    model = Mixed(2)
    task = mixed_task(model)
    halves = []  # variance and mean of each channel in what batch norm gets, rank 0's share first
    model.stem[1].register_forward_pre_hook(lambda norm, inputs: halves.append(torch.var_mean(inputs[0].detach(), (0, 2, 3))))

    def update(step, weight_batch, architecture_batch, sgd):
        """What both ranks do with their shares of the architecture's batch, one after the other."""
        gradients, dropout = [], torch.random.get_rng_state()
        for feed in feeds:
            torch.random.set_rng_state(dropout)
            images, labels = feed.architecture(next(feed.batches(step, step + 1)))
            gradients += torch.autograd.grad(functional.cross_entropy(model(images), labels), [model.logits])
        model.logits.grad = (gradients[0] + gradients[1]) / 2
        task.outer.optimizer.step()
        return {}

    one = dataclasses.replace(task, outer=dataclasses.replace(task.outer, update=update))
    run_loop(one, dataset, dataclasses.replace(TWO, accumulation=2), {}, tmp_path)
    (document, found), (expected_document, expected) = load_checkpoint(folder / "mixed"), load_checkpoint(tmp_path)
    assert document["epoch_losses"] == pytest.approx(expected_document["epoch_losses"], rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found["weights"][name], expected["weights"][name], rtol=1e-4, atol=1e-5)
        if name != "logits":
            torch.testing.assert_close(found["average"][name], parameter, rtol=1e-4, atol=1e-5)
    assert found["weights"]["logits"].abs().max() > 0.1  # they moved
    variance, mean = torch.ones(6), torch.zeros(6)
    for (first_variance, first_mean), (second_variance, second_mean) in zip(halves[::2], halves[1::2], strict=True):
        variance = 0.9 * variance + 0.1 * (first_variance + second_variance) / 2
        mean = 0.9 * mean + 0.1 * (first_mean + second_mean) / 2
    torch.testing.assert_close(found["weights"]["stem.1.running_var"], variance, rtol=1e-3, atol=0)
    torch.testing.assert_close(found["weights"]["stem.1.running_mean"], mean, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("method", ["fbnet", "proxyless"])
def test_two_processes_learn_one_architecture(scenarios, method):
    (first, second), _ = scenarios
    assert first[method] == second[method]  # every logit, to the bit
    assert float(first[method].split()[0]) == pytest.approx(1, abs=0.02)  # of the cost that is wanted


def test_one_ranks_nan_stops_all_and_all_name_the_layer(scenarios):
    expected = "4 Training must stay finite, but the loss is nan, first in the output of layer '0', at step 4"
    for told in scenarios[0]:
        assert told["nan"].startswith(expected)


def test_one_ranks_interrupt_stops_all_at_the_same_step(dataset, scenarios, tmp_path):
    (first, second), folder = scenarios
    assert first["stopped"] == second["stopped"] == "interrupted"
    assert load_checkpoint(folder / "stopped")[0]["step"] in (7, 8)  # told with the next step
    resumed, whole = plain_network(3), plain_network()  # one process continues what two began
    run_loop(plain_task(resumed), dataset, CONFIG, {}, folder / "stopped")
    run_loop(plain_task(whole), dataset, CONFIG, {}, tmp_path)
    for one, other in zip(resumed.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_a_rank_that_dies_ends_the_others(scenarios):
    (first, second), _ = scenarios
    assert "dead" not in second
    assert first["dead"].startswith("5 All 2 processes of a run must go on together, but rank 0 has lost another")


def test_a_rank_that_hangs_does_not_hang_the_others():
    waiting, hanging = two(HANGS)
    try:
        told, errors = waiting.communicate(timeout=200)
    finally:
        for child in (waiting, hanging):
            child.kill()
            child.communicate()
    assert told.startswith("All 2 processes of a run must go on together, but rank 0 has lost another"), errors


def test_torchrun_trains_a_supernet_as_one_process_does(space, dataset, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(TRAIN)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script),
               str(tmp_path / "two")]
    done = subprocess.run(command, env=child_environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    told = [json.loads((tmp_path / f"two.{rank}").read_text()) for rank in (0, 1)]
    assert [each["shown"] for each in told] == [20, 0]
    assert told[0]["losses"] == told[1]["losses"] and told[0]["steps"] == 20
    assert sorted(os.listdir(tmp_path / "two")) == ["supernet.json", "supernet.safetensors"]

    config = dataclasses.replace(SUPERNET_CONFIG, batch_size=16, accumulation=2)
    result = train_supernet(space, dataset, tmp_path / "one", config)
    assert told[0]["losses"] == pytest.approx(result.epoch_losses, rel=1e-4)
    one, two = (load_supernet(tmp_path / name)[0] for name in ("one", "two"))
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(two.get_parameter(name), parameter, rtol=1e-3, atol=1e-4)


def test_a_process_alone_needs_nobody(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with joined("cpu") as group:
        assert group == Group() and group.is_first
        tensor = torch.ones(3)
        group.average([tensor])
        group.copy_from_first([tensor])
        group.wait()
        assert group.lowest(4) == 4 and tensor.tolist() == [1, 1, 1]
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(InputError, match="use torchrun"), joined("cpu"):
        pass


def test_devices_are_those_of_the_ranks():
    assert Group(1, 2, 1).device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match="use 'cuda'"):
        Group(1, 2, 1).device("cuda:0")
    with pytest.raises(UnavailableError, match="'nonsense'"):
        Group().device("nonsense")
