"""Checkpoints that contradict themselves are refused when they are read, not steps later."""

import dataclasses

import pytest

from hwnas.errors import InputError
from hwnas.supernet.checkpoint import load_checkpoint, save_checkpoint
from hwnas.supernet.loop import run_loop
from tests.supernet.loop_samples import CONFIG, plain_network, plain_task


@pytest.mark.parametrize(("stem", "name"), [("optimizers", "sgd/momentum_buffer/0.weight"), ("average", "0.weight")])
def test_a_tensor_of_another_shape_is_refused(dataset, tmp_path, stem, name):
    config = dataclasses.replace(CONFIG, ema_decay=0.5)
    run_loop(plain_task(plain_network()), dataset, config, {}, tmp_path)
    document, tensors = load_checkpoint(tmp_path)
    rest = {key: value for key, value in document.items() if key not in ("schema", "step", "files")}
    save_checkpoint(tmp_path, document["step"], rest, tensors)
    run_loop(plain_task(plain_network()), dataset, config, {}, tmp_path)  # written again as it was
    tensors[stem][name] = tensors[stem][name].transpose(0, 1)
    save_checkpoint(tmp_path, document["step"], rest, tensors)
    with pytest.raises(InputError, match="contradicts itself"):
        run_loop(plain_task(plain_network()), dataset, config, {}, tmp_path)
