"""Mixed precision with one cast of all weights a step, where autocast starts a kernel for each and its gradient.

A step of a small network takes as long as the starting of its kernels, and casts of weights were a quarter of those.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec

import torch
from torch import Tensor, nn

from modules.nets.attention import MultiHeadAttention

P = ParamSpec("P")
PRODUCTS = (nn.Linear, nn.Conv1d, nn.Conv2d, MultiHeadAttention)
"""Modules whose own parameters enter products, which autocast computes in the lower type."""


class _Cast(torch.autograd.Function):
    """All tensors in another type, by one operation on the list; gradients go back likewise."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.dtype = tensors[0].dtype
        copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
        torch._foreach_copy_(copies, list(tensors))
        return tuple(copies)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        found = [grad for grad in grads if grad is not None]
        # by itself, so that it can be differentiated again
        wide = iter(_Cast.apply(ctx.dtype, *found) if found else ())
        return (None, *(None if grad is None else next(wide) for grad in grads))


@contextmanager
def weights_cast(module: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Within it the weights of all products are of that type; gradients reach the parameters, which are float32."""
    places = [
        (part._parameters, name)
        for part in module.modules()
        if isinstance(part, PRODUCTS)
        for name, parameter in part.named_parameters(recurse=False)
        if parameter.dtype == torch.float32 and parameter.requires_grad
    ]
    weights: list[Any] = [parameters[name] for parameters, name in places]
    if not weights:
        yield
        return
    copies = _Cast.apply(dtype, *weights)
    try:
        for (parameters, name), copy in zip(places, copies, strict=True):
            parameters[name] = copy
        yield
    finally:
        for (parameters, name), weight in zip(places, weights, strict=True):
            parameters[name] = weight


def weights_cast_once(step: Callable[P, Tensor]) -> Callable[P, Tensor]:
    """Decorator of a LightningModule's `training_step`: under autocast its weights are cast once, all together.

    What torch.compile has compiled is left alone: there casts are part of the kernels.
    """

    @functools.wraps(step)
    def training_step(*args: P.args, **kwargs: P.kwargs) -> Tensor:
        module: Any = args[0]
        device = module.device.type
        if module.compiled or not torch.is_autocast_enabled(device):
            return step(*args, **kwargs)
        with weights_cast(module, torch.get_autocast_dtype(device)):
            return step(*args, **kwargs)

    return training_step
