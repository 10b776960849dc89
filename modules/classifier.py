"""What the three classifiers share: averaged members, the metrics of validation and test, and what is predicted."""

import math
from typing import Any, ClassVar, Literal, NamedTuple

from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from modules.base import HomeworkModule
from modules.losses import focal_loss


class Judged(NamedTuple):
    """What the networks say of the N rows of a batch: frames, images or utterances."""

    logs: Tensor
    """Log-probabilities (N, C)."""
    embeddings: Tensor | None = None
    """(N, E), where the homework needs them."""

    @property
    def answers(self) -> Tensor:
        """The likeliest class of each row, (N,)."""
        return self.logs.argmax(1)

    @property
    def probabilities(self) -> Tensor:
        """Probabilities of all classes for each row, (N, C)."""
        return self.logs.exp()


def mean_log_probabilities(scores: Tensor) -> Tensor:
    """Logarithm of the members' mean probabilities: logits (M, N, C) -> (N, C)."""
    return scores.float().log_softmax(-1).logsumexp(0) - math.log(len(scores))


def check_shares(**values: float) -> None:
    """Refuse options that are no share from 0 to below 1.

    Raises:
        MisconfigurationException: names the option and its value.
    """
    for name, value in values.items():
        if not 0 <= value < 1:
            raise MisconfigurationException(f"model.{name} is {value}: expected 0 or more, below 1")


class Classifier(HomeworkModule):
    """Base of the classifiers. A homework adds `build`, `training_step`, `judge`, `remember`, and what it draws.

    Args:
        optimizer: See HomeworkModule.
        members: Networks trained side by side on the same batches, from other weights.
        label_smoothing: Share of the target spread evenly over all classes (Szegedy et al. 2016, arXiv 1512.00567).
        focal: gamma of the focal loss, which counts what is found already for little; 0: cross-entropy.
    """

    monitor: ClassVar[str] = "val/accuracy"
    mode: ClassVar[str] = "max"

    def __init__(
        self,
        optimizer: OptimizerCallable | None = None,
        members: int = 1,
        label_smoothing: float = 0.0,
        focal: float = 0.0,
    ) -> None:
        super().__init__(optimizer)
        if members < 1:
            raise MisconfigurationException(f"model.members is {members}: expected at least 1")
        check_shares(label_smoothing=label_smoothing)
        if focal < 0:
            raise MisconfigurationException(f"model.focal is {focal}: expected 0 or more")
        self.members, self.label_smoothing, self.focal = members, label_smoothing, focal
        self.augment = nn.ModuleList()

    def build_metrics(self, count: int, **further: Metric) -> None:
        """Create accuracy, cross-entropy, confusions, and what else a homework measures, for so many classes."""
        metrics: dict[str, Metric | MetricCollection] = {
            "accuracy": MulticlassAccuracy(count, average="micro", validate_args=False), **further
        }  # fmt: skip
        # no groups: torchmetrics would take two for one where their values agree on the first batch
        self.val_metrics = MetricCollection(metrics, prefix="val/", compute_groups=False)
        self.test_metrics = self.val_metrics.clone("test/")
        self.val_loss, self.test_loss = MeanMetric(), MeanMetric()
        self.confusion = MulticlassConfusionMatrix(count, validate_args=False)

    def augmented(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        """Sequences (B, T, D), mask (B, T), as each member sees them: (B, T, D) each.

        In training `augment` makes another draw for every member, of all members at once.
        """
        if not self.training or not len(self.augment):
            return (x,) * self.members
        x, mask = x.repeat(self.members, 1, 1), None if mask is None else mask.repeat(self.members, 1)
        for part in self.augment:
            x = part(x, mask)
        return x.chunk(self.members)

    def judge(self, batch: dict[str, Any]) -> Judged:
        """What the networks say of a batch."""
        raise NotImplementedError

    def remember(self, batch: dict[str, Any], judged: Judged, y: Tensor) -> None:
        """Keep what the pictures and tables show."""
        raise NotImplementedError

    def forget(self) -> None:
        """Drop what the epoch before left for pictures and tables."""
        raise NotImplementedError

    def of_each_row(self, batch: dict[str, Any], name: str) -> Tensor:
        """The batch's `y` or `row` (N,) of all that is classified."""
        return batch[name]

    def row_losses(self, scores: Tensor, target: Tensor) -> Tensor:
        """Sum over rows of the loss of logits (N, C) for classes (N,) or their shares (N, C)."""
        return focal_loss(scores, target, self.focal, self.label_smoothing)

    def members_loss(self, scores: Tensor, y: Tensor, losses: Tensor | None = None) -> Tensor:
        """The mean over rows, logged as the mean over members too.

        The members' sum is what is differentiated: each learns as if alone, but that clipping sees them together.

        Args:
            scores: Logits (M, N, C).
            y: Classes (N,).
            losses: Sum over rows and members (); None: that of `row_losses`.
        """
        every = y.expand(len(scores), -1)
        if losses is None:
            losses = self.row_losses(scores.flatten(0, 1), every.flatten())
        loss = self.global_mean(losses, len(y))
        self.track(loss / len(scores), scores.argmax(-1) == every)
        return loss

    def evaluate(self, batch: dict[str, Any], stage: Literal["val", "test"]) -> tuple[Judged, Tensor]:
        """Judge a batch and log its metrics; returns what was said and the targets (N,)."""
        metrics, loss = (self.val_metrics, self.val_loss) if stage == "val" else (self.test_metrics, self.test_loss)
        judged, y = self.judge(batch), self.of_each_row(batch, "y")
        metrics.update(judged.logs, y)
        loss.update(F.nll_loss(judged.logs, y, reduction="none"))
        self.confusion.update(judged.answers, y)
        self.log_dict(metrics, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(y))
        self.log(f"{stage}/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(y))
        self.remember(batch, judged, y)
        return judged, y

    def on_validation_epoch_start(self) -> None:
        """Forget the epoch before."""
        self.confusion.reset()
        self.forget()

    def on_test_epoch_start(self) -> None:
        """Forget the epoch before."""
        self.on_validation_epoch_start()

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Metrics and cross-entropy of what was held out."""
        self.evaluate(batch, "val")

    def test_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """As validation, on test data whose classes are known."""
        self.evaluate(batch, "test")

    def predict_step(self, batch: dict[str, Any], batch_idx: int) -> dict[str, Tensor]:
        """Row numbers (N,) and class probabilities (N, C)."""
        return {"row": self.of_each_row(batch, "row"), "prediction": self.judge(batch).probabilities}

    def confusions(self) -> tuple[Tensor, list[str]] | None:
        """How often each class was taken for each other, (C, C), over all ranks, and their names; None: never judged.

        All ranks must call it, those that have judged nothing, too.
        """
        facts: dict[str, Any] | None = self.facts
        if facts is None or not (self.confusion.update_called or self.trainer.world_size > 1):
            return None
        return self.confusion.compute().cpu(), facts["classes"]
