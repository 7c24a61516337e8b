"""Which layer made a step's numbers infinite or NaN: the step, a function of (seed, step), is computed again and watched."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def places(model: nn.Module) -> list[str]:
    """Where a number can stop being finite, in words: modules, then parameters."""
    modules = [f"in the output of layer {name!r}" if name else "in the model's output" for name, _ in model.named_modules()]
    return modules + [f"in the gradient of {name!r}" for name, _ in model.named_parameters()]


def first_nonfinite(model: nn.Module, recompute: Callable[[], object]) -> int | None:
    """Computes a step again and finds the first place that is not finite.

    Args:
        model: Computes the step.
        recompute: Computes outputs and gradients as the step did.

    Returns:
        Index into `places`; None where all outputs and gradients of parameters are finite.
    """
    found: list[int] = []

    def note(place: int, values: Any) -> None:
        if not found and not all(bool(each.detach().isfinite().all()) for each in _tensors(values)):
            found.append(place)

    modules, parameters = list(model.modules()), list(model.parameters())
    handles = [module.register_forward_hook(lambda _module, _inputs, output, place=place: note(place, output))
               for place, module in enumerate(modules)]
    handles += [parameter.register_post_accumulate_grad_hook(lambda leaf, place=place: note(place, leaf.grad))
                for place, parameter in enumerate(parameters, start=len(modules)) if parameter.requires_grad]
    try:
        model.zero_grad(set_to_none=True)
        with torch.compiler.set_stance("force_eager"):  # a compiled network has no layers left to watch
            recompute()
    finally:
        for handle in handles:
            handle.remove()
    for place, parameter in enumerate(parameters, start=len(modules)):  # what was not added by a backward pass
        note(place, parameter.grad)
    return found[0] if found else None


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))
    elif isinstance(values, (list, tuple)):
        for each in values:
            yield from _tensors(each)
