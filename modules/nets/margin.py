"""Softmax on cosines with a margin, for embeddings that tell unseen speakers or faces apart."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MarginSoftmax(nn.Module):
    """Logits for cross-entropy: scale * cos of the angle between an embedding and each class, (B, D) -> (B, C).

    With targets, in training, the target's logit is made smaller: s (cos - m) if additive (Wang et al. 2018, arXiv
    1801.05599), s cos(angle + m) if angular (Deng et al. 2019, arXiv 1801.07698, eq. 3). Beyond angle + m = pi
    that cosine would rise again; there the logit is s (cos - m sin m), as in the authors' code, which goes on falling.

    Args:
        d: D.
        classes: C.
        scale: s.
        margin: m: a cosine if additive (the paper has 0.35), radians if angular (0.5).
        kind: additive or angular.
        centres: Directions of each class, of which the nearest counts, so that a few wrong or odd examples do not pull
            at the others (Deng et al. 2020, Sub-center ArcFace, has 3).
    """

    def __init__(
        self,
        d: int,
        classes: int,
        scale: float = 30.0,
        margin: float = 0.35,
        kind: Literal["additive", "angular"] = "additive",
        centres: int = 1,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.margin = margin
        self.kind = kind
        self.centres = centres
        self.weight = nn.Parameter(torch.empty(classes * centres, d))
        nn.init.xavier_normal_(self.weight)  # only directions matter, and a normal distribution prefers none

    def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        """(B, D), targets (B,) or None -> (B, C)."""
        return self.logits(x, self.weight, target)

    def logits(self, x: Tensor, weight: Tensor, target: Tensor | None = None) -> Tensor:
        """As forward, with weights of the same shape; for M members at once all have a further dimension M in front."""
        with torch.autocast(x.device.type, enabled=False):  # in bfloat16 a cosine is off by up to 0.004, then scaled
            cosines = F.normalize(x.to(weight.dtype), dim=-1) @ F.normalize(weight, dim=-1).transpose(-2, -1)
            if self.centres > 1:
                cosines = cosines.unflatten(-1, (-1, self.centres)).amax(-1)
            if target is not None:
                index = target.expand(cosines.shape[:-1]).unsqueeze(-1)
                cosines = cosines.scatter(-1, index, self._with_margin(cosines.gather(-1, index)))
            return self.scale * cosines

    def _with_margin(self, cosine: Tensor) -> Tensor:
        """The target's cosine after the margin."""
        m = self.margin
        if self.kind == "additive":
            return cosine - m
        # The sine's gradient is infinite at 0; the floor makes it zero there, where rounding has eaten the sine anyway.
        sine = (1 - cosine.square()).clamp(min=torch.finfo(cosine.dtype).eps).sqrt()
        return torch.where(cosine > -math.cos(m), cosine * math.cos(m) - sine * math.sin(m), cosine - m * math.sin(m))
