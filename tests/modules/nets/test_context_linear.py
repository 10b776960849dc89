"""The linear path against scikit-learn and against its own definition."""

import math

import numpy as np
import torch
from scipy.optimize import minimize
from sklearn.linear_model import Ridge

from modules.nets.context_linear import ContextLinear


def data(rows=60, contexts=3, features=4, seed=0):
    rng = np.random.default_rng(seed)
    marks = np.eye(contexts)[rng.integers(contexts, size=rows)]
    x = np.concatenate([marks, rng.normal(size=(rows, features))], axis=1)
    y = x @ rng.normal(size=contexts + features) + 0.5 * marks[:, 0] * x[:, -1] + 0.1 * rng.normal(size=rows)
    is_context = torch.tensor([[True] * contexts + [False] * features])
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y, dtype=torch.float32), is_context


def test_without_corrections_it_is_ridge_regression():
    x, y, is_context = data()
    net = ContextLinear(2, x.shape[1], is_context.repeat(2, 1))
    net.fit(1, x, y, ridge=2.5, context_ridge=math.inf)
    expected = Ridge(alpha=2.5, fit_intercept=False).fit(x.numpy(), y.numpy()).predict(x.numpy())
    out = net(x.expand(2, *x.shape))
    np.testing.assert_allclose(out[1].numpy(), expected, atol=1e-4)
    assert not out[0].any()  # the other member was not touched


def test_it_minimises_the_objective_of_its_docstring():
    x, y, is_context = data(rows=25)
    net = ContextLinear(1, x.shape[1], is_context)
    net.fit(0, x, y, ridge=1.5, context_ridge=4.0)
    rows, target, c = x.double().numpy(), y.double().numpy(), is_context[0].numpy()

    def objective(flat):
        w, v = flat[: len(c)], flat[len(c) :].reshape(c.sum(), (~c).sum())
        predicted = rows @ w + ((rows[:, c] @ v) * rows[:, ~c]).sum(1)
        return ((target - predicted) ** 2).sum() + 1.5 * (w**2).sum() + 4.0 * (v**2).sum()

    size = len(c) + c.sum() * (~c).sum()
    best = minimize(objective, np.zeros(size), method="L-BFGS-B", options={"maxiter": 5000, "ftol": 1e-14})
    ours = np.concatenate([net.shared[0, :, 0].numpy(), net.by_context[0].numpy()[np.ix_(c, ~c)].ravel()])
    np.testing.assert_allclose(ours, best.x, atol=2e-3)
    assert objective(ours) <= best.fun * (1 + 1e-4)


def test_an_unseen_context_gets_the_shared_coefficients():
    x, y, is_context = data()
    seen = x[:, 2] == 0
    net = ContextLinear(1, x.shape[1], is_context)
    net.fit(0, x[seen], y[seen], ridge=1.0, context_ridge=1.0)
    row = torch.zeros(1, 1, x.shape[1])
    row[..., 2], row[..., 3:] = 1.0, 1.0
    torch.testing.assert_close(net(row)[0, 0], net.shared[0, 3:, 0].sum())
