"""The loop's parts together: accumulation, averages, outer updates, precisions, logs, and the layer at fault."""

import dataclasses
import re
import shutil
import signal
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from hwnas.data.dataset import Split, build_dataset
from hwnas.errors import InputError, UnavailableError, VerificationError
from hwnas.supernet import build_supernet, train_network
from hwnas.supernet.checkpoint import load_checkpoint, load_optimizers, optimizer_tensors
from hwnas.supernet.interrupt import deferred_interrupt
from hwnas.supernet.loop import OuterUpdate, Task, run_loop
from hwnas.supernet.paths import uniform_paths
from hwnas.supernet.precision import LossScale
from hwnas.supernet.single_path import single_path_task
from tests.supernet.loop_samples import CONFIG, EVERYTHING, Mixed, kill_at, mixed_task, plain_network, plain_task
from tests.supernet.samples import CLASSES, interrupt

CHILD = """
import dataclasses, sys
from pathlib import Path
from hwnas.supernet.loop import run_loop
from tests.supernet.loop_samples import EVERYTHING, Mixed, mixed_task, wait_at
from tests.supernet.samples import tiny_dataset

folder = Path(sys.argv[1])
run_loop(mixed_task(Mixed(1)), tiny_dataset(), dataclasses.replace(EVERYTHING, checkpoint_seconds=0.0), {}, folder / "checkpoint",
         wait_at(int(sys.argv[2])), log_folder=folder / "logs")
"""


def assert_same(found: nn.Module, expected: nn.Module) -> None:
    for name, tensor in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], tensor), name


def interrupted_at(step):
    def progress(done, *_):
        if done == step:
            interrupt()

    return progress


@pytest.mark.parametrize("accumulation", [2, 4])
def test_micro_batches_give_the_gradient_of_the_whole_batch(dataset, tmp_path, accumulation):
    models = []
    for count in (1, accumulation):
        models.append(plain_network())
        config = dataclasses.replace(CONFIG, accumulation=count, gradient_clip=0.3)
        run_loop(plain_task(models[-1]), dataset, config, {}, tmp_path / str(count))
    for one, other in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_moving_average_is_the_one_computed_by_hand(dataset, tmp_path):
    model, untouched = plain_network(), nn.Parameter(torch.tensor([3.0]))
    model.register_parameter("untouched", untouched)
    expected = {name: parameter.detach().double().clone() for name, parameter in model.named_parameters()}

    def progress(done, *_):
        decay = min(0.7, done / (done + 9))  # of step done - 1: (1 + step) / (10 + step)
        for name, parameter in model.named_parameters():
            expected[name] = decay * expected[name] + (1 - decay) * parameter.detach().double()

    run_loop(plain_task(model), dataset, dataclasses.replace(CONFIG, ema_decay=0.7), {}, tmp_path, progress)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.double(), expected[name], rtol=1e-5, atol=1e-6)
    last = load_checkpoint(tmp_path)[1]
    assert not torch.equal(last["weights"]["0.weight"], model[0].weight)  # what the next step would have started from
    assert torch.equal(last["average"]["0.weight"], model[0].weight)


def test_the_average_of_batch_norm_statistics_goes_with_the_weights(dataset, tmp_path):
    model = Mixed()
    expected = model.stem[1].running_var.double().clone()

    def progress(done, *_):
        decay = min(0.7, done / (done + 9))
        expected.mul_(decay).add_(model.stem[1].running_var.double(), alpha=1 - decay)

    run_loop(plain_task(model), dataset, dataclasses.replace(CONFIG, ema_decay=0.7), {}, tmp_path, progress)
    torch.testing.assert_close(model.stem[1].running_var.double(), expected, rtol=1e-5, atol=1e-6)
    assert model.stem[1].num_batches_tracked == 20


@pytest.fixture(scope="module")
def uninterrupted(dataset, tmp_path_factory):
    """A run with every feature on: weights, figures of the log."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    model = Mixed(1)
    run_loop(mixed_task(model), dataset, EVERYTHING, {}, folder / "checkpoint", log_folder=folder / "logs")
    return model, scalars(folder / "logs")


def scalars(folder):
    """All records of a log by name, as TensorBoard reads them, but for the speed."""
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    accumulator = reading.EventAccumulator(str(folder), size_guidance={reading.SCALARS: 0})
    accumulator.Reload()
    return {name: [(each.step, each.value) for each in accumulator.Scalars(name)]
            for name in accumulator.Tags()["scalars"] if name != "images_per_second"}


def test_a_run_with_every_feature_resumes_to_the_bit(dataset, uninterrupted, tmp_path):
    for step in (1, 7, 8, 17):  # an epoch has 6; the outer update begins with the second
        with pytest.raises(KeyboardInterrupt):
            run_loop(mixed_task(Mixed(9)) if step > 1 else mixed_task(Mixed(1)), dataset, EVERYTHING, {}, tmp_path / "checkpoint",
                     interrupted_at(step), log_folder=tmp_path / "logs")
    model = Mixed(9)
    run_loop(mixed_task(model), dataset, EVERYTHING, {}, tmp_path / "checkpoint", log_folder=tmp_path / "logs")
    assert_same(model, uninterrupted[0])
    assert scalars(tmp_path / "logs") == uninterrupted[1]


def test_a_killed_run_with_every_feature_resumes_to_the_bit(dataset, uninterrupted, tmp_path):
    for step in (3, 10):
        kill_at(step, CHILD, tmp_path)
    model, steps = Mixed(9), []
    run_loop(mixed_task(model), dataset, EVERYTHING, {}, tmp_path / "checkpoint", lambda step, *_: steps.append(step),
             log_folder=tmp_path / "logs")
    assert steps[0] == 10
    assert_same(model, uninterrupted[0])
    assert scalars(tmp_path / "logs") == uninterrupted[1]


def test_a_log_forgets_the_steps_that_no_checkpoint_held(dataset, uninterrupted, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run_loop(mixed_task(Mixed(1)), dataset, EVERYTHING, {}, tmp_path / "checkpoint", interrupted_at(5),
                 log_folder=tmp_path / "logs")

    def progress(done, *_):
        if done == 9:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_loop(mixed_task(Mixed(1)), dataset, EVERYTHING, {}, tmp_path / "checkpoint", progress, log_folder=tmp_path / "logs")
    assert [step for step, _ in scalars(tmp_path / "logs")["loss"]] == [*range(1, 9)]
    run_loop(mixed_task(Mixed(1)), dataset, EVERYTHING, {}, tmp_path / "checkpoint", log_folder=tmp_path / "logs")
    assert scalars(tmp_path / "logs") == uninterrupted[1]


def test_a_log_holds_what_the_steps_gave(uninterrupted):
    records = uninterrupted[1]
    assert set(records) == {"loss", "learning_rate", "gradient_norm", "architecture_loss"}
    assert [step for step, _ in records["loss"]] == [*range(1, 19)]
    assert [step for step, _ in records["architecture_loss"]] == [*range(7, 19)]
    assert [value for _, value in records["learning_rate"]] == pytest.approx(
        [EVERYTHING.learning_rate_at(step, 18) for step in range(18)])


def test_a_log_needs_tensorboard(dataset, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    config = dataclasses.replace(CONFIG, log_steps=1)
    with pytest.raises(UnavailableError, match="pip install tensorboard"):
        run_loop(plain_task(plain_network()), dataset, config, {}, tmp_path, log_folder=tmp_path)


def test_under_torchrun_a_second_signal_is_the_first_again():
    handler = signal.getsignal(signal.SIGINT)
    with deferred_interrupt(once=False) as interrupted:
        assert not interrupted.is_set()
        interrupt()
        interrupt()
        assert interrupted.is_set()
    with deferred_interrupt():
        interrupt()
        assert signal.getsignal(signal.SIGINT) is handler  # the second interrupts as it did before
    assert signal.getsignal(signal.SIGINT) is handler


def test_the_architecture_has_images_of_its_own(tmp_path):
    """Each image is its own number in one colour; a shift leaves that as it is."""
    def split(count):
        images = np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 1, 4, 4)).copy()
        return Split(images, np.arange(count, dtype=np.int64) % CLASSES)

    numbered = build_dataset("numbers", split(50), split(4), split(4), tuple("abcd"))
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))
    logits = nn.Parameter(torch.zeros(1))
    model.register_parameter("logits", logits)
    seen = {"weights": [], "architecture": []}
    rates = []

    def numbers(images):
        return (255 * (images[:, 0, 0, 0] * numbered.std[0] + numbered.mean[0])).round().int().tolist()

    inner = plain_task(model)

    def backward(step, images, labels):
        seen["weights"].append((step, numbers(images), labels.tolist()))
        return inner.backward(step, images, labels)

    def update(step, weight_batch, architecture_batch, sgd):
        assert all(parameter is not logits for group in sgd.param_groups for parameter in group["params"])
        assert all(parameter.grad is None for parameter in model.parameters())
        rates.append(sgd.param_groups[0]["lr"])
        assert len(weight_batch[1]) == len(architecture_batch[1]) == 8
        images, labels = architecture_batch
        seen["architecture"].append((step, numbers(images), labels.tolist()))
        model[1].weight.grad = torch.full_like(model[1].weight, 1e9)  # is taken away before the weights' own gradient
        return {}

    task = Task(model, backward, inner.describe, OuterUpdate(torch.optim.SGD([logits], 0.1), update, 0.4, 1))
    config = dataclasses.replace(CONFIG, epochs=3, batch_size=8, max_shift=0)
    assert run_loop(task, numbered, config, {}, tmp_path).step == 9
    assert [step for step, *_ in seen["weights"]] == [*range(9)]
    assert [step for step, *_ in seen["architecture"]] == [*range(3, 9)]
    for name, allowed in (("weights", range(30)), ("architecture", range(30, 50))):
        for _, indices, labels in seen[name]:
            assert set(indices) <= set(allowed) and len(set(indices)) == 8
            assert labels == [index % CLASSES for index in indices]
    assert len({tuple(indices) for _, indices, _ in seen["architecture"]}) == 6
    assert rates == [config.learning_rate_at(step, 9) for step in range(3, 9)]
    assert model[1].weight.abs().max() < 10

    with pytest.raises(InputError, match="lower the batch size"):
        run_loop(task, numbered, dataclasses.replace(config, batch_size=24), {}, tmp_path / "large")


def test_a_task_may_decay_weights_itself(dataset, tmp_path):
    models = [plain_network() for _ in range(3)]
    settings = {"decayed": (0.5, True), "left": (0.5, False), "plain": (0.0, True)}
    for model, (name, (weight_decay, decays_weights)) in zip(models, settings.items(), strict=True):
        task = dataclasses.replace(plain_task(model), decays_weights=decays_weights)
        run_loop(task, dataset, dataclasses.replace(CONFIG, weight_decay=weight_decay), {}, tmp_path / name)
    assert not torch.equal(models[0][0].weight, models[1][0].weight)
    assert_same(models[1], models[2])


def test_what_optimisers_remember_is_given_back_to_the_bit():
    def optimisers(model):
        return {"sgd": torch.optim.SGD(model[0].parameters(), 0.1, momentum=0.9),
                "adam": torch.optim.Adam(model[2].parameters(), 0.1, amsgrad=True),
                "rms": torch.optim.RMSprop(model[6].parameters(), 0.1, centered=True)}

    model = plain_network().to(memory_format=torch.channels_last)
    first = optimisers(model)
    for _ in range(3):
        functional.cross_entropy(model(torch.randn(4, 3, 16, 16)), torch.tensor([0, 1, 2, 3])).backward()
        for optimizer in first.values():
            optimizer.step()
    stored = optimizer_tensors(model, first)
    assert {name.split("/")[1] for name in stored} >= {"momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "step",
                                                       "square_avg", "grad_avg"}
    second = optimisers(model)
    load_optimizers(model, second, {name: tensor.contiguous() for name, tensor in stored.items()})
    for label, optimizer in first.items():
        for parameter, state in optimizer.state.items():
            for key, value in state.items():
                other = second[label].state[parameter][key]
                if value is None:
                    assert other is None
                else:
                    assert torch.equal(value, other) and value.dtype == other.dtype and value.stride() == other.stride(), key


def test_bf16_learns_in_lower_precision_and_keeps_weights_in_fp32(dataset, tmp_path):
    losses = {}
    for precision in ("fp32", "bf16"):
        model, types = Mixed(), set()
        model.small.register_forward_hook(lambda *seen, types=types: types.add(seen[2].dtype))
        config = dataclasses.replace(CONFIG, precision=precision, epochs=4)
        losses[precision] = run_loop(plain_task(model), dataset, config, {}, tmp_path / precision).epoch_losses
        assert types == {torch.float32 if precision == "fp32" else torch.bfloat16}
        assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)


def test_the_loss_scale_does_not_change_the_gradient(dataset, tmp_path):
    """The factor is a power of two, so scaling alone changes no bit; computing in fp16 does."""
    gradients = []
    for factor in (1.0, 1024.0):
        model = plain_network()
        scale = LossScale(factor)
        scale.backward(functional.cross_entropy(model(torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))),
                                                torch.tensor([0, 1, 2, 3])))
        gradients.append(model[0].weight.grad / factor)
    assert torch.equal(*gradients)


def test_fp16_leaves_out_steps_that_overflow_and_resumes_to_the_bit(dataset, tmp_path):
    def task_of(model):
        inner = plain_task(model)

        def backward(step, images, labels):
            loss = inner.backward(step, images, labels)
            if step in (2, 3):  # as if the scaled gradients had overflowed
                model[0].weight.grad.fill_(float("inf"))
            before.append(model[0].weight.detach().clone())
            return loss

        return dataclasses.replace(inner, backward=backward)

    config = dataclasses.replace(CONFIG, precision="fp16")
    before, reference = [], plain_network()
    run_loop(task_of(reference), dataset, config, {}, tmp_path / "reference")
    changes = [not torch.equal(*pair) for pair in pairwise(before)]
    assert changes[:6] == [True, True, False, False, True, True]
    assert load_checkpoint(tmp_path / "reference")[0]["loss_scale"] == {"factor": 65536 / 4, "good_steps": 16}

    before, model = [], plain_network()
    for step in (3, 12):
        with pytest.raises(KeyboardInterrupt):
            run_loop(task_of(model), dataset, config, {}, tmp_path / "resumed", interrupted_at(step))
        model = plain_network(4)
    run_loop(task_of(model), dataset, config, {}, tmp_path / "resumed")
    assert_same(model, reference)
    exact = plain_network()
    run_loop(plain_task(exact), dataset, CONFIG, {}, tmp_path / "exact")
    assert not torch.equal(exact[0].weight, reference[0].weight)


def test_fp16_gives_up_when_no_factor_helps(dataset, tmp_path):
    model = plain_network()
    inner = plain_task(model)

    def backward(step, images, labels):
        loss = inner.backward(step, images, labels)
        model[0].weight.grad.fill_(float("nan"))
        return loss

    config = dataclasses.replace(CONFIG, precision="fp16", epochs=9)
    with pytest.raises(VerificationError, match=r"norm is nan, first in the gradient of '0.weight', at step 16 "):
        run_loop(dataclasses.replace(inner, backward=backward), dataset, config, {}, tmp_path)
    with pytest.raises(InputError, match="fp16 needs a method that scales"):
        run_loop(dataclasses.replace(inner, loss_scale=None), dataset, config, {}, tmp_path / "other")


def test_the_scale_grows_after_two_thousand_good_steps():
    scale = LossScale()
    scale.start()
    for _ in range(1999):
        scale.update(overflowed=False)
    assert scale == LossScale(65536, 1999)
    scale.update(overflowed=False)
    assert scale == LossScale(131072, 0)
    scale.update(overflowed=True)
    assert scale == LossScale(65536, 0)


def test_the_layer_that_overflows_is_named(dataset, tmp_path):
    model = plain_network()
    with torch.no_grad():
        model[2].weight[0, 0, 0, 0] = float("inf")
    with pytest.raises(VerificationError, match=r"the loss is nan, first in the output of layer '2', at step 0 \(a plain net"):
        run_loop(plain_task(model), dataset, CONFIG, {}, tmp_path)


def test_the_option_that_overflows_is_named(space, dataset, tmp_path):
    supernet = build_supernet(space, 1)
    paths = uniform_paths(space, 0)
    broken, module = list(supernet.modules_on(paths(0)[0]))[1]
    weight = next(name for name, parameter in module.named_parameters() if parameter.ndim == 4)
    with torch.no_grad():
        module.get_parameter(weight).fill_(1e38)
    name = next(name for name, each in supernet.named_modules() if each is module)
    layer = f"{name}.{weight.rpartition('.')[0]}"
    assert broken == "width"
    with pytest.raises(VerificationError, match=rf"first in the output of layer '{re.escape(layer)}', at step 0 \(path \w+ \w+"):
        run_loop(single_path_task(supernet, paths, 0.1), dataset, dataclasses.replace(CONFIG, learning_rate=1e-9), {}, tmp_path)


def test_a_loss_that_overflows_is_told_from_a_layer(dataset, tmp_path):
    model = plain_network()

    def backward(step, images, labels):
        loss = functional.cross_entropy(model(images), labels)
        loss = loss * 1e38 * 1e38 if step == 3 else loss
        loss.backward()
        return loss.detach()

    with pytest.raises(VerificationError, match="the loss is inf, though every layer's output is finite, at step 3 "):
        run_loop(Task(model, backward, lambda step: "x"), dataset, CONFIG, {}, tmp_path)


@pytest.mark.parametrize("gradient_clip", [None, 1.0])
def test_the_layer_whose_gradient_is_not_finite_is_named(dataset, tmp_path, gradient_clip):
    class Root(nn.Module):
        def forward(self, x):
            return (x * 0).sqrt() + x  # finite, with an infinite slope

    model = plain_network()
    model.insert(3, Root())
    with pytest.raises(VerificationError, match=r"norm is (nan|inf), first in the gradient of '2\.(weight|bias)', at step 0"):
        run_loop(plain_task(model), dataset, dataclasses.replace(CONFIG, gradient_clip=gradient_clip), {}, tmp_path)
    assert not list(tmp_path.glob("**/*.safetensors"))


def test_a_figure_of_the_outer_update_that_is_not_finite_stops(dataset, tmp_path):
    model = Mixed()
    task = mixed_task(model, first_epoch=0)
    outer = dataclasses.replace(task.outer, update=lambda step, *_: {"temperature": float("nan") if step == 2 else 1.0})
    with pytest.raises(VerificationError, match="the temperature of the architecture's update is nan at step 2 "):
        run_loop(dataclasses.replace(task, outer=outer), dataset, CONFIG, {}, tmp_path)


class HostReads(TorchDispatchMode):
    """Counts what makes the host wait for the device."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


def test_how_often_host_and_device_meet_does_not_depend_on_the_number_of_parameters(dataset, tmp_path):
    counts = []
    for depth in (1, 12):
        model = nn.Sequential(*(nn.Conv2d(3, 3, 1) for _ in range(depth)), nn.Flatten(), nn.Linear(768, CLASSES))
        with HostReads() as reads:
            run_loop(plain_task(model), dataset, CONFIG, {}, tmp_path / str(depth))
        counts.append(reads.count)
    assert counts[0] == counts[1]


def test_compile_is_for_single_networks_and_needs_a_compiler(space, dataset, tmp_path, monkeypatch):
    config = dataclasses.replace(CONFIG, compile=True)
    with pytest.raises(InputError, match="compile is for training one network"):
        run_loop(mixed_task(Mixed()), dataset, config, {}, tmp_path)
    network = space.network(space.architectures([[0, 1, 0]])[0])
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"C\+\+ compiler"):
        train_network(network, dataset, tmp_path / "run", config)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # in what PyTorch imports for compiling
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiles C++")
def test_a_compiled_network_trains_like_one_that_is_not(space, dataset, tmp_path):
    network = space.network(space.architectures([[2, 2, 0]])[0])
    losses = [train_network(network, dataset, tmp_path / str(compiled), dataclasses.replace(CONFIG, compile=compiled, epochs=1))
              .epoch_losses for compiled in (False, True)]
    assert losses[1] == pytest.approx(losses[0], rel=0.1)  # dropout draws other numbers
