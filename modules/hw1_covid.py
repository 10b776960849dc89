"""HW1: regression of tomorrow's share of positive tests, by one network or many trained in one pass."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics import MeanSquaredError, MetricCollection

from modules.base import HomeworkModule
from modules.cast_weights import weights_cast_once
from modules.nets.context_linear import ContextLinear
from modules.nets.mlp import MLP, Activation


class CovidNet(nn.Module):
    """Standardises raw features, runs M networks, and gives predictions in percent: (M, B, C) -> (M, B).

    Args:
        facts: From CovidData: the D features each member uses, their mean and scale, the target's, the anchor.
        hidden, activation, dropout, batch_norm, residual: See MLP.
        skip: Add a linear path beside the perceptron, its coefficients free to differ from state to state.
    """

    shift: Tensor
    inverse: Tensor
    target_mean: Tensor
    target_scale: Tensor

    def __init__(
        self,
        facts: dict[str, Any],
        hidden: list[int],
        activation: Activation,
        dropout: float,
        batch_norm: bool,
        residual: bool,
        skip: bool,
    ) -> None:
        super().__init__()
        members, features = facts["used"].shape
        self.anchor: int | None = facts["anchor"]
        self.used = facts["used"].unsqueeze(1)  # no buffer: averaging weights would average the numbers, too
        self.register_buffer("inverse", 1 / facts["scale"].unsqueeze(1))
        self.register_buffer("shift", -facts["mean"].unsqueeze(1) * self.inverse)
        for name in ("target_mean", "target_scale"):
            self.register_buffer(name, facts[name].unsqueeze(1))
        self.all_used = features == len(facts["features"])
        self.mlp = MLP(members, features, 1, hidden, activation, dropout, batch_norm, residual)
        self.skip = ContextLinear(members, features, facts["is_state"]) if skip else None
        if self.skip is not None:  # the perceptron adds to a finished linear model, so it begins by adding nothing
            nn.init.zeros_(self.mlp[-1].weight)  # type: ignore[arg-type]
            nn.init.zeros_(self.mlp[-1].bias)  # type: ignore[arg-type]

    def standardise(self, x: Tensor) -> Tensor:
        """The features each member uses, (M, B, C) -> (M, B, D), by its own fold's mean and scale."""
        chosen = x if self.all_used else x.gather(2, self.used.to(x.device).expand(-1, x.shape[1], -1))
        return torch.addcmul(self.shift, chosen, self.inverse)

    def forward(self, x: Tensor) -> Tensor:
        """Predictions in percent, (M, B, C) -> (M, B)."""
        z = self.standardise(x)
        out = self.mlp(z).squeeze(-1)
        if self.skip is not None:
            out = out + self.skip(z)
        percent = out * self.target_scale + self.target_mean
        return percent if self.anchor is None else percent + x[:, :, self.anchor]

    @torch.no_grad()
    def fit_skip(self, x: Tensor, y: Tensor, rows: Sequence[Tensor], ridge: float, state_ridge: float) -> None:
        """Solve the linear path of each member on its training rows; x (N, C), y (N,) in percent."""
        assert self.skip is not None
        base = torch.zeros_like(y) if self.anchor is None else x[:, self.anchor]
        for m, chosen in enumerate(rows):
            if m and chosen is rows[m - 1] and torch.equal(self.used[m], self.used[m - 1]):  # another of the same fold
                self.skip.shared[m], self.skip.by_context[m] = self.skip.shared[m - 1], self.skip.by_context[m - 1]
                continue
            index = chosen.to(x.device)
            features = x[index][:, self.used[m, 0].to(x.device)]
            z = torch.addcmul(self.shift[m], features, self.inverse[m])
            target = ((y - base)[index] - self.target_mean[m]) / self.target_scale[m]
            self.skip.fit(m, z, target, ridge, state_ridge)


class CovidRegressor(HomeworkModule):
    """MSE regression with M members; the ensemble's prediction is the mean of those that did not train on the row.

    Args:
        optimizer: See HomeworkModule.
        hidden: Widths of the hidden layers; [] is linear regression, [k] with sigmoid the notes' sum of k sigmoids.
        activation, dropout, batch_norm, residual: See MLP.
        ridge: Put a linear path beside the perceptron, solved in closed form with this penalty on its coefficients
            (standardised features); the perceptron learns what it leaves over. null: no such path.
        state_ridge: Penalty on each state's corrections to these coefficients; .inf for none.
    """

    homework: ClassVar[str] = "hw1_covid"
    monitor: ClassVar[str] = "val/mse"
    members_in_one_pass: ClassVar[bool] = True

    def __init__(
        self,
        optimizer: OptimizerCallable | None = None,
        hidden: list[int] = [64],  # noqa: B006  (a tuple is not a YAML list)
        activation: Activation = "relu",
        dropout: float = 0.0,
        batch_norm: bool = False,
        residual: bool = False,
        ridge: float | None = None,
        state_ridge: float = math.inf,
    ) -> None:
        super().__init__(optimizer)
        if any(width < 1 for width in hidden):
            raise MisconfigurationException(f"model.hidden is {hidden}: expected widths of at least 1")
        if not 0 <= dropout < 1:
            raise MisconfigurationException(f"model.dropout is {dropout}: expected 0 or more, below 1")
        for name, value in {"ridge": ridge, "state_ridge": state_ridge}.items():
            if value is not None and not value > 0:
                raise MisconfigurationException(f"model.{name} is {value}: expected a penalty above 0")
        self.save_hyperparameters(ignore=["optimizer"])
        self.ridge, self.state_ridge = ridge, state_ridge
        self.net_options: dict[str, Any] = {
            "hidden": hidden,
            "activation": activation,
            "dropout": dropout,
            "batch_norm": batch_norm,
            "residual": residual,
            "skip": ridge is not None,
        }
        metrics = MetricCollection({"mse": MeanSquaredError(), "rmse": MeanSquaredError(squared=False)})
        self.val_metrics, self.test_metrics = metrics.clone("val/"), metrics.clone("test/")
        self._seen: list[tuple[Tensor, Tensor]] = []
        self.net: CovidNet

    def build(self, facts: dict[str, Any]) -> None:
        """Create M networks for the features in use."""
        self.net = CovidNet(facts, **self.net_options)

    def on_train_start(self) -> None:
        """Solve the linear path in closed form, unless the run is a resumed one."""
        assert self.facts is not None
        if self.net_options["batch_norm"]:
            if self.trainer.world_size > 1:
                raise MisconfigurationException("model.batch_norm needs one process: each would see half of a batch")
            if self.facts.get("last_batch") == 1:  # facts of old checkpoints lack it
                raise MisconfigurationException(
                    "data.batch_size leaves a last batch of one row, which batch norm cannot use; choose another size"
                )
        if self.net.skip is not None and self.ridge is not None and not self.net.skip.shared.any():
            by_fold = dict(zip(self.facts["fold"].unique().tolist(), self.facts["train_rows"], strict=True))
            rows = [by_fold[fold] for fold in self.facts["fold"].tolist()]
            dataset = self.trainer.train_dataloader.dataset  # type: ignore[union-attr]
            every = dataset[torch.arange(len(dataset))]
            self.net.fit_skip(every["x"], every["y"], rows, self.ridge, self.state_ridge)

    def forward(self, x: Tensor) -> Tensor:
        """Predictions of every member, (M, B, C) -> (M, B), in percent."""
        return self.net(x)

    @weights_cast_once
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Sum over members of the mean squared error over the batch, x (M, B, C), y (M, B)."""
        errors = (self(batch["x"]) - batch["y"]).square()
        mse = self.global_mean(errors.sum(), errors.shape[1])
        self.track(mse / errors.shape[0])
        return mse

    def ensemble(self, batch: dict[str, Tensor]) -> Tensor:
        """Mean over members (B,); rows with a fold number are judged only by the members that hold that fold out."""
        assert self.facts is not None
        members = self.facts["fold"].to(batch["x"].device)
        each = self(batch["x"].expand(len(members), *batch["x"].shape))
        if "fold" not in batch:
            return each.mean(0)
        votes = (members.unsqueeze(1) == batch["fold"]).to(each.dtype)
        return (each * votes).sum(0) / votes.sum(0)

    def _evaluate(self, batch: dict[str, Tensor], metrics: MetricCollection) -> None:
        predicted = self.ensemble(batch)
        metrics.update(predicted, batch["y"])
        self._seen.append((predicted, batch["y"]))
        self.log_dict(metrics, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(predicted))

    def on_validation_epoch_start(self) -> None:
        """Forget the rows of the epoch before."""
        self._seen.clear()

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Squared error of the ensemble over the held-out rows, x (B, C), y (B,)."""
        self._evaluate(batch, self.val_metrics)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """As validation, on the labelled test rows."""
        self._evaluate(batch, self.test_metrics)

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Row numbers and predictions (B,) in percent."""
        return {"row": batch["row"], "prediction": self.ensemble(batch)}

    def _judged(self) -> tuple[Tensor, Tensor]:
        """Predictions and targets (B,) of the rows judged last (on several ranks: of the first one)."""
        predicted, true = (torch.cat(part).float().cpu() for part in zip(*self._seen, strict=True))
        return predicted, true

    def tables(self) -> dict[str, tuple[list[str], list[list[Any]]]]:
        """True and predicted values of the rows judged last."""
        if not self._seen:
            return {}
        predicted, true = self._judged()
        return {"held_out": (["true", "predicted"], torch.stack((true, predicted), dim=1).tolist())}

    def draw(self) -> dict[str, Figure]:
        """Predicted against true values of the rows judged last."""
        if not self._seen:
            return {}
        predicted, true = self._judged()
        figure = Figure(figsize=(5, 5), layout="constrained")
        axes = figure.subplots()
        ends = [float(min(true.min(), predicted.min())), float(max(true.max(), predicted.max()))]
        axes.plot(ends, ends, color="0.6", linewidth=1)
        axes.scatter(true, predicted, s=8, alpha=0.5)
        rmse = (predicted - true).square().mean().sqrt()
        axes.set(xlabel="true tested_positive (%)", ylabel="predicted (%)", aspect="equal")
        axes.set_title(f"{len(true)} held-out rows, RMSE {rmse:.3f}", fontsize=9)
        return {"predicted_against_true": figure}
