"""Linear regression whose coefficients may differ from context to context (here: from state to state)."""

import torch
from torch import Tensor, nn


class ContextLinear(nn.Module):
    """y = w x + sum_s c_s (v_s x): shared coefficients w plus a correction v_s for each context s that is switched on.

    (M, B, D) -> (M, B, 1) for M members. Everything starts at 0, and `v` stays small by its penalty, so that a context
    that was never seen falls back on the shared coefficients: partial pooling, as in a mixed-effects model (Laird &
    Ware 1982).

    Args:
        members, features: M and D.
        is_context: (M, D), true where a feature is the 0/1 mark of a context; these marks get an intercept in w.
    """

    is_context: Tensor

    def __init__(self, members: int, features: int, is_context: Tensor) -> None:
        super().__init__()
        self.register_buffer("is_context", is_context.float().unsqueeze(1), persistent=False)
        self.shared = nn.Parameter(torch.zeros(members, features, 1))
        self.by_context = nn.Parameter(torch.zeros(members, features, features))

    def forward(self, x: Tensor) -> Tensor:
        context = x * self.is_context
        other = x - context
        return torch.bmm(x, self.shared) + (torch.bmm(context, self.by_context) * other).sum(-1, keepdim=True)

    @torch.no_grad()
    def fit(self, member: int, x: Tensor, y: Tensor, ridge: float) -> None:
        """Set one member's shared coefficients to the ridge solution (Hoerl & Kennard 1970) of centred x (N, D), y (N,)."""
        a = x.double()
        gram = a.T @ a + ridge * torch.eye(a.shape[1], dtype=a.dtype, device=a.device)
        self.shared[member] = torch.linalg.solve(gram, a.T @ y.double().unsqueeze(1)).to(self.shared.dtype)

    def penalty(self) -> Tensor:
        """Sum of squares of the corrections, (M,)."""
        return self.by_context.square().sum((1, 2))
