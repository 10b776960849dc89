"""Linear regression whose coefficients may differ from context to context (in HW1: from state to state)."""

import torch
from torch import Tensor, nn


class ContextLinear(nn.Module):
    """y = w x + sum_s c_s (v_s x): shared coefficients w plus a correction v_s for each context s that is switched on.

    (M, B, D) -> (M, B) for M members. Nothing here is trained by gradient: `fit` solves for the coefficients. A context
    that was never seen falls back on the shared ones: partial pooling, as in a mixed-effects model (Laird & Ware 1982).

    Args:
        members, features: M and D.
        is_context: (M, D), true where a feature is the 0/1 mark of a context; these marks get an intercept in w.
    """

    is_context: Tensor
    shared: Tensor
    by_context: Tensor

    def __init__(self, members: int, features: int, is_context: Tensor) -> None:
        super().__init__()
        self.register_buffer("is_context", is_context.unsqueeze(1).float(), persistent=False)
        self.register_buffer("shared", torch.zeros(members, features, 1))
        self.register_buffer("by_context", torch.zeros(members, features, features))

    def forward(self, x: Tensor) -> Tensor:
        """(M, B, D) -> (M, B)."""
        context = x * self.is_context
        other = x - context
        return torch.bmm(x, self.shared).squeeze(-1) + (torch.bmm(context, self.by_context) * other).sum(-1)

    @torch.no_grad()
    def fit(self, member: int, x: Tensor, y: Tensor, ridge: float, context_ridge: float) -> None:
        """Set one member's coefficients to the minimum of |y - f(x)|^2 + ridge |w|^2 + context_ridge sum_s |v_s|^2.

        Ridge regression (Hoerl & Kennard 1970) in its dual form: there are more corrections than rows.

        Args:
            member: Which of the M.
            x: (N, D), standardised.
            y: (N,), centred.
            ridge, context_ridge: Penalties above 0; an infinite context_ridge leaves out the corrections.
        """
        rows = x.double()
        context = rows * self.is_context[member]
        other = rows - context
        kernel = rows @ rows.T / ridge + (context @ context.T) * (other @ other.T) / context_ridge
        kernel.diagonal().add_(1)
        dual = torch.linalg.solve(kernel, y.double().unsqueeze(1))
        self.shared[member] = rows.T @ dual / ridge
        self.by_context[member] = context.T @ (dual * other) / context_ridge
