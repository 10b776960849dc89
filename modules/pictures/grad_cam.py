"""Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391): where a convolutional network looked for a class."""

import torch
from torch import Tensor, nn


def grad_cam(net: nn.Module, layer: nn.Module, x: Tensor, target: Tensor) -> Tensor:
    """Heat of each place for the score of a class: ReLU of the activations, weighted by their mean gradients.

    Works under no_grad and inference_mode, too, and leaves neither hooks nor gradients behind.

    Args:
        net: In eval mode, (B, C, H, W) -> scores (B, classes) before any softmax.
        layer: A part of it with an output (B, K, h, w); usually the last one with places left.
        x: (B, C, H, W)
        target: Numbers of the classes, (B,).

    Returns:
        (B, h, w), 0 or more, not scaled.

    Raises:
        ValueError: the network is in train mode, where batch norm mixes the samples and changes its statistics; or the
            layer did not run exactly once, with an output of that shape.
    """
    if net.training:
        raise ValueError("grad_cam needs a network in eval mode")
    outputs: list[Tensor] = []

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        outputs.append(output.detach().requires_grad_())
        return outputs[-1].clone()  # what follows may work in place

    with torch.inference_mode(False), torch.enable_grad():
        x, target = x.detach().clone(), target.clone()  # autograd cannot use tensors made in inference mode
        hook = layer.register_forward_hook(keep)
        try:
            scores = net(x)
        finally:
            hook.remove()
        if len(outputs) != 1 or outputs[0].dim() != 4:
            shapes = [tuple(output.shape) for output in outputs]
            raise ValueError(f"grad_cam needs a layer with one output (B, K, h, w), this one gave {shapes}")
        chosen = scores.gather(1, target.to(scores.device).unsqueeze(1)).sum()
        (gradient,) = torch.autograd.grad(chosen, outputs)
        weights = gradient.mean(dim=(2, 3), keepdim=True)  # eq. 1
        return (weights * outputs[0].detach()).sum(1).relu()  # eq. 2
