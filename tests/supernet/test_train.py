"""Training: it learns, it resumes to the bit after a kill, it stops on NaN, and it refuses what does not belong together."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from hwnas.data import load_dataset
from hwnas.errors import InputError, UnavailableError, VerificationError
from hwnas.files import locked
from hwnas.ir.blocks import Head, MBConv, Stem
from hwnas.ir.shape import TensorShape
from hwnas.ir.space import Decision, Fixed, SearchSpace
from hwnas.supernet import SupernetEvaluator, TrainConfig, build_supernet, load_supernet, require_same_data, train_supernet
from hwnas.supernet.loop import Task, run_loop
from hwnas.supernet.paths import uniform_paths
from hwnas.supernet.single_path import single_path_task
from hwnas.supernet.train import ARCHITECTURE_FILE
from tests.supernet.loop_samples import child_environment, kill_at
from tests.supernet.samples import CONFIG, interrupt, tiny_dataset, tiny_space

STEPS = 20

CHILD = """
import dataclasses, sys
from hwnas.supernet import train_supernet
from tests.supernet.loop_samples import wait_at
from tests.supernet.samples import CONFIG, tiny_dataset, tiny_space

train_supernet(tiny_space(), tiny_dataset(), sys.argv[1], dataclasses.replace(CONFIG, checkpoint_seconds=0.0),
               progress=wait_at(int(sys.argv[2])))
"""

# One process after the other goes on with the run, and kills itself before it puts in place or deletes a certain file of a
# checkpoint. Each tells which step can be continued from. They are forks, since importing takes longer than training here.
DYING = """
import dataclasses, json, os, signal, sys
from pathlib import Path
from hwnas.supernet import train_supernet
from tests.supernet.samples import CONFIG, tiny_dataset, tiny_space

def dying(function):
    def either(*paths):
        if Path(paths[-1]).name == name:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*paths)
    return either

os.replace, os.unlink = dying(os.replace), dying(os.unlink)
state = Path(sys.argv[1], "checkpoint", "state.json")
for name in sys.argv[2:]:
    if os.fork() == 0:
        train_supernet(tiny_space(), tiny_dataset(), sys.argv[1], dataclasses.replace(CONFIG, checkpoint_seconds=0.0))
        os._exit(0)
    assert os.WTERMSIG(os.wait()[1]) == signal.SIGKILL, name
    print(json.loads(state.read_text())["step"] if state.exists() else 0)
"""


@pytest.fixture(scope="module")
def reference(space, dataset, tmp_path_factory):
    """A run that nothing interrupted."""
    folder = tmp_path_factory.mktemp("reference")
    result = train_supernet(space, dataset, folder, CONFIG)
    assert result.steps == STEPS
    return folder


def weights_of(folder):
    return (folder / "supernet.safetensors").read_bytes()


def interrupted_run(space, dataset, folder, step=7, config=CONFIG):
    """Leaves a checkpoint of the given step, by a Ctrl-C at its end."""
    def progress(done, *_):
        if done == step:
            interrupt()

    with pytest.raises(KeyboardInterrupt):
        train_supernet(space, dataset, folder, config, progress=progress)


def test_only_the_sampled_path_moves(space, dataset, tmp_path):
    supernet = build_supernet(space, 1).to(memory_format=torch.channels_last)
    paths = uniform_paths(space, 0)
    inner = single_path_task(supernet, paths, 0.1)
    before = {}
    moved_off_path = []

    def backward(step, images, labels):
        if step:  # what the update of the last step left, against what it met
            on_path = {id(parameter) for _, module in supernet.modules_on(paths(step - 1)[0])
                       for parameter in module.parameters()}
            for name, parameter in supernet.named_parameters():
                if not torch.equal(parameter, before[name]) and id(parameter) not in on_path:
                    moved_off_path.append((step, name))
        before.update({name: parameter.detach().clone() for name, parameter in supernet.named_parameters()})
        return inner.backward(step, images, labels)

    config = dataclasses.replace(CONFIG, weight_decay=0.1)
    run_loop(Task(supernet, backward, inner.describe), dataset, config, {}, tmp_path / "checkpoint")
    assert moved_off_path == []


def test_a_step_is_torchs_own_sgd_on_the_smoothed_loss(space, dataset, tmp_path):
    config = dataclasses.replace(CONFIG, epochs=1, max_shift=0, cutout=0, gradient_clip=None, weight_decay=0.01)
    space = dataclasses.replace(space, layers=(*space.layers[:-1], Fixed("head", Head(4))))  # no dropout
    train_supernet(space, dataset, tmp_path, config)
    trained = load_supernet(tmp_path, space)[0].state_dict()

    supernet = build_supernet(space, config.seed)
    decayed = [each for each in supernet.parameters() if each.ndim > 1]
    others = [each for each in supernet.parameters() if each.ndim == 1]
    optimizer = torch.optim.SGD([{"params": decayed, "weight_decay": 0.01}, {"params": others}], lr=1.0, momentum=0.9)
    order = np.random.default_rng([config.seed, 0]).permutation(160)
    for step in range(10):
        for group in optimizer.param_groups:
            group["lr"] = 0.05 * (step + 1) / 3 if step < 3 else 0.05 * (10 - step) / 7
        chosen = order[16 * step:16 * step + 16]
        logits = supernet(torch.from_numpy(dataset.normalise(dataset.train.images[chosen])), uniform_paths(space, 3)(step)[0])
        targets = torch.full((16, 4), 0.1 / 4)
        targets[torch.arange(16), dataset.train.labels[chosen]] += 0.9
        optimizer.zero_grad()
        (-(targets * logits.log_softmax(1)).sum(1).mean()).backward()
        optimizer.step()
    for name, tensor in supernet.state_dict().items():
        torch.testing.assert_close(trained[name], tensor, rtol=1e-3, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def test_a_killed_run_resumes_to_the_bit(reference, tmp_path):
    for step in (4, 11):
        kill_at(step, CHILD, tmp_path)
        assert not (tmp_path / "supernet.json").exists()
        assert json.loads((tmp_path / "checkpoint" / "state.json").read_text())["step"] == step - 1

    steps = []
    result = train_supernet(tiny_space(), tiny_dataset(), tmp_path, CONFIG, progress=lambda step, *_: steps.append(step))
    assert steps[0] == 11
    assert weights_of(tmp_path) == weights_of(reference)
    expected = json.loads((reference / "supernet.json").read_text())["epoch_losses"]
    assert list(result.epoch_losses) == expected
    assert not (tmp_path / "checkpoint").exists()


def test_a_run_killed_within_a_checkpoint_resumes_to_the_bit(reference, tmp_path):
    deaths = {"optimizers-000000001.safetensors": 0, "optimizers-000000006.safetensors": 5, "state.json": 5,
              "weights-000000005.safetensors": 6}  # the last is deleted once that of step 6 stands
    done = subprocess.run([sys.executable, "-c", DYING, str(tmp_path), *deaths], env=child_environment(), capture_output=True,
                          text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [int(step) for step in done.stdout.split()] == [*deaths.values()]
    train_supernet(tiny_space(), tiny_dataset(), tmp_path, CONFIG)
    assert weights_of(tmp_path) == weights_of(reference)
    assert not (tmp_path / "checkpoint").exists()


def test_a_real_ctrl_c_leaves_a_checkpoint(reference, tmp_path):
    reset = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job may ignore it
    child = subprocess.Popen([sys.executable, "-c", reset + CHILD, str(tmp_path), "5"], stdin=subprocess.PIPE,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=child_environment())
    if "5\n" in child.stdout:
        child.send_signal(signal.SIGINT)
    _, told = child.communicate(timeout=60)  # closes what the child waits for
    # Python ends with the signal, or with 1, which depends on what else is installed: what counts is what it raised.
    assert child.returncode in (-signal.SIGINT, 1) and told.rstrip().endswith("\nKeyboardInterrupt")
    assert json.loads((tmp_path / "checkpoint" / "state.json").read_text())["step"] == 5
    train_supernet(tiny_space(), tiny_dataset(), tmp_path, CONFIG)
    assert weights_of(tmp_path) == weights_of(reference)


@pytest.mark.parametrize("step", [1, 10, 13, 20])  # in the warm-up, at an epoch's end, in the second epoch, at the end
def test_ctrl_c_leaves_a_checkpoint_that_resumes_to_the_bit(space, dataset, reference, tmp_path, step):
    handler = signal.getsignal(signal.SIGINT)
    interrupted_run(space, dataset, tmp_path, step)
    assert signal.getsignal(signal.SIGINT) is handler
    assert json.loads((tmp_path / "checkpoint" / "state.json").read_text())["step"] == step
    train_supernet(space, dataset, tmp_path, CONFIG)
    assert weights_of(tmp_path) == weights_of(reference)


def test_training_leaves_torchs_settings_and_random_state(space, dataset, tmp_path):
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    train_supernet(space, dataset, tmp_path, dataclasses.replace(CONFIG, threads=2, epochs=1))
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == 1


def test_the_seed_decides(space, dataset, reference, tmp_path):
    train_supernet(space, dataset, tmp_path, dataclasses.replace(CONFIG, seed=4))
    assert weights_of(tmp_path) != weights_of(reference)


def test_a_finished_run_is_reported_not_repeated(space, dataset, reference):
    before = weights_of(reference)
    result = train_supernet(space, dataset, reference, CONFIG, progress=lambda *_: pytest.fail("trained again"))
    assert result.already_trained and result.steps == STEPS and len(result.epoch_losses) == 2
    assert weights_of(reference) == before


def test_a_folder_is_one_runs_until_it_ends(space, dataset, reference, tmp_path):
    (tmp_path / ARCHITECTURE_FILE).write_text("mine")

    def disturb(step, *_):
        if step == 5:
            for overwrite in (False, True):
                with pytest.raises(InputError, match=f"process {os.getpid()} is at work on it"):
                    train_supernet(space, dataset, tmp_path, CONFIG, overwrite=overwrite)

    train_supernet(space, dataset, tmp_path, dataclasses.replace(CONFIG, checkpoint_seconds=0.0), progress=disturb)
    assert weights_of(tmp_path) == weights_of(reference)
    assert sorted(os.listdir(tmp_path)) == [ARCHITECTURE_FILE, "supernet.json", "supernet.safetensors"]


def test_a_finished_run_is_reported_without_a_lock(space, dataset, reference):
    with locked(reference / "supernet.json", "supernet"):
        assert train_supernet(space, dataset, reference, CONFIG).already_trained


@pytest.mark.parametrize(("change", "key"), [({"epochs": 3}, "config.epochs"), ({"learning_rate": 0.1}, "config.learning_rate"),
                                             ({"flip": True}, "config.flip")])
def test_another_configuration_is_refused_by_name(space, dataset, reference, tmp_path, change, key):
    config = dataclasses.replace(CONFIG, **change)
    with pytest.raises(InputError, match=f"{key} was .* overwrite"):
        train_supernet(space, dataset, reference, config)
    interrupted_run(space, dataset, tmp_path)
    with pytest.raises(InputError, match=f"{key} was .* overwrite"):
        train_supernet(space, dataset, tmp_path, config)


def test_another_space_or_dataset_is_refused_by_name(space, dataset, tmp_path):
    interrupted_run(space, dataset, tmp_path)
    other = dataclasses.replace(space, layers=(*space.layers[:-1], Fixed("head", Head(4, 32))))
    with pytest.raises(InputError, match="space_hash was"):
        train_supernet(other, dataset, tmp_path, CONFIG)
    with pytest.raises(InputError, match=r"data\.train_images was 160"):
        train_supernet(space, tiny_dataset(train=176), tmp_path, CONFIG)
    with pytest.raises(InputError, match=r"data\.train_sha256 was"):
        train_supernet(space, tiny_dataset(seed=1), tmp_path, CONFIG)


def test_threads_may_change_on_resume(space, dataset, tmp_path):
    interrupted_run(space, dataset, tmp_path)
    train_supernet(space, dataset, tmp_path, dataclasses.replace(CONFIG, threads=2))


def test_overwrite_starts_again_and_spares_other_files(space, dataset, reference, tmp_path):
    interrupted_run(space, dataset, tmp_path, config=dataclasses.replace(CONFIG, seed=9))
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ARCHITECTURE_FILE).write_text("of an earlier run")
    train_supernet(space, dataset, tmp_path, CONFIG, overwrite=True)
    assert weights_of(tmp_path) == weights_of(reference)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / ARCHITECTURE_FILE).exists()


def test_a_log_lies_in_the_runs_folder_and_goes_when_it_is_overwritten(space, dataset, reference, tmp_path):
    pytest.importorskip("tensorboard")
    train_supernet(space, dataset, tmp_path, dataclasses.replace(CONFIG, log_steps=5))
    logs = list((tmp_path / "logs").iterdir())
    assert len(logs) == 1 and logs[0].stat().st_size > 0
    assert weights_of(tmp_path) == weights_of(reference)
    (tmp_path / "logs" / "notes.txt").write_text("mine")
    train_supernet(space, dataset, tmp_path, CONFIG, overwrite=True)
    assert os.listdir(tmp_path / "logs") == ["notes.txt"]


def test_an_absurd_learning_rate_stops_at_once(space, dataset, tmp_path):
    config = dataclasses.replace(CONFIG, learning_rate=1e20, gradient_clip=None)
    steps = []
    with pytest.raises(VerificationError, match=r"at step \d+ \(path \w+ \w+ \w+, learning rate .*no checkpoint") as error:
        train_supernet(space, dataset, tmp_path, config, progress=lambda step, *_: steps.append(step))
    assert error.value.exit_code == 4
    assert len(steps) < 6
    assert not (tmp_path / "supernet.json").exists()


def test_a_nan_keeps_the_last_good_checkpoint_readable(space, dataset, tmp_path):
    """NaN appears in one gradient at step 5: the checkpoint of step 5 (the five steps before it) must be what is left."""
    supernet = build_supernet(space)
    inner = single_path_task(supernet, uniform_paths(space, 0), 0.1)
    good = {}

    def backward(step, images, labels):
        if step == 5:
            good.update({name: parameter.detach().clone() for name, parameter in supernet.named_parameters()})
        loss = inner.backward(step, images, labels)
        if step == 5:
            next(each for each in supernet.parameters() if each.grad is not None).grad.fill_(float("nan"))
        return loss

    task = Task(supernet, backward, inner.describe)
    config = dataclasses.replace(CONFIG, gradient_clip=None, checkpoint_seconds=0.0)
    with pytest.raises(VerificationError, match="checkpoint, of step 5, is kept"):
        run_loop(task, dataset, config, {}, tmp_path)

    restored = build_supernet(space, seed=8)

    def stop(step, images, labels):
        assert step == 5
        assert all(torch.equal(good[name], parameter) for name, parameter in restored.named_parameters())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_loop(Task(restored, stop, inner.describe), dataset, config, {}, tmp_path)


def test_damaged_checkpoints_are_refused_in_one_sentence(space, dataset, tmp_path):
    interrupted_run(space, dataset, tmp_path)
    folder = tmp_path / "checkpoint"
    state = (folder / "state.json").read_text()
    weights = next(folder.glob("weights-*"))
    data = weights.read_bytes()

    def refused(match):
        with pytest.raises(InputError, match=match) as error:
            train_supernet(space, dataset, tmp_path, CONFIG)
        assert "\n" not in str(error.value)

    weights.write_bytes(data[:-1000])
    refused("truncated or were edited: start again with overwrite")
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused("truncated or were edited: start again with overwrite")
    weights.unlink()
    refused("cannot be read .*: start again with overwrite")
    weights.write_bytes(data)
    (folder / "state.json").write_text(state[:-20])
    refused("not valid JSON")
    document = json.loads(state)
    for edited, match in (({**document, "files": {}}, "incomplete"), ({**document, "files": 3}, "edited"), ([], "schema"),
                          ({**document, "identity": None}, "kind was None"),
                          ({**document, "step": "7"}, "contradicts"), ({**document, "step": 17}, "contradicts"),
                          ({**document, "loss_sum": "x"}, "contradicts"),
                          ({name: value for name, value in document.items() if name != "seconds"}, "incomplete")):
        (folder / "state.json").write_text(json.dumps(edited))
        refused(match)


def test_a_damaged_supernet_is_refused(space, dataset, reference, tmp_path):
    document = json.loads((reference / "supernet.json").read_text())
    (tmp_path / "supernet.json").write_text(json.dumps(document))
    with pytest.raises(InputError, match="cannot be read"):
        load_supernet(tmp_path)
    (tmp_path / "supernet.safetensors").write_bytes(weights_of(reference)[:-10])
    with pytest.raises(InputError, match="truncated or were edited: train it again"):
        load_supernet(tmp_path)
    (tmp_path / "supernet.safetensors").write_bytes(weights_of(reference))
    load_supernet(tmp_path)
    for edited, match in (({**document, "schema": "hwnas.supernet/0"}, "schema"),
                          ({**document, "space": tiny_space(classes=5).to_dict()}, "hash"),
                          ({**document, "space": tiny_space(classes=5).to_dict(), "space_hash": tiny_space(classes=5).hash},
                           "head/head.*another shape")):
        (tmp_path / "supernet.json").write_text(json.dumps(edited))
        with pytest.raises(InputError, match=match):
            load_supernet(tmp_path)


def test_a_supernet_is_used_with_its_own_space(space, dataset, reference, tmp_path):
    supernet, info = load_supernet(reference, space)
    assert supernet.space == space and not supernet.training and info["space_hash"] == space.hash
    with pytest.raises(InputError, match="the space it was trained for"):
        load_supernet(reference, tiny_space(classes=5))
    with pytest.raises(InputError, match="cannot be read"):
        load_supernet(tmp_path)
    interrupted_run(space, dataset, tmp_path)
    with pytest.raises(InputError, match=r"fully trained.*continues it"):
        load_supernet(tmp_path)


def test_the_document_tells_a_search_what_it_was_trained_on(space, dataset, tmp_path):
    train_supernet(space, dataset, tmp_path, dataclasses.replace(CONFIG, epochs=1), data_source={"spec": "noise", "seed": 0})
    _, info = load_supernet(tmp_path)
    assert info["data_source"] == {"spec": "noise", "seed": 0} and info["schema"] == "hwnas.supernet/1"
    require_same_data(info, dataset)
    with pytest.raises(InputError, match="train_sha256"):
        require_same_data(info, tiny_dataset(seed=1))


def test_what_cannot_be_trained_is_refused(space, dataset, tmp_path):
    with pytest.raises(InputError, match="an output for each class"):
        train_supernet(tiny_space(classes=5), dataset, tmp_path, CONFIG)
    with pytest.raises(InputError, match="lower the batch size"):
        train_supernet(space, dataset, tmp_path, dataclasses.replace(CONFIG, batch_size=161))
    with pytest.raises(InputError, match="vector of class scores"):
        train_supernet(dataclasses.replace(space, layers=space.layers[:-1]), dataset, tmp_path, CONFIG)
    with pytest.raises(UnavailableError, match="'nonsense'"):
        train_supernet(space, dataset, tmp_path, dataclasses.replace(CONFIG, device="nonsense"))
    assert not (tmp_path / "supernet.json").exists()


def test_it_learns_digits(tmp_path):
    dataset = load_dataset("digits", image_size=16)
    options = {f"k{kernel}e{expansion}": (kernel, expansion) for kernel in (3, 5) for expansion in (2, 4)}
    layers = [Fixed("stem", Stem(12, 3, 2))]
    for index, stride in enumerate((1, 2, 1)):
        layers.append(Decision(f"block{index}", {name: MBConv(24 if index else 12, kernel, expansion, stride)
                                                 for name, (kernel, expansion) in options.items()}))
    space = SearchSpace("digits", TensorShape(1, 16, 16), (*layers, Fixed("head", Head(10, 48))))
    config = TrainConfig(epochs=10, batch_size=32, learning_rate=0.4, max_shift=0, threads=1)
    result = train_supernet(space, dataset, tmp_path, config)
    assert result.epoch_losses[-1] < 0.6 * result.epoch_losses[0]
    supernet, _ = load_supernet(tmp_path)
    architectures = space.architectures(np.random.default_rng(0).integers(0, 4, (4, 3)))
    assert min(SupernetEvaluator(supernet, dataset)(architectures)) > 0.7  # chance is 0.1
