"""HW2: the phone of every frame, from a window around it or from the whole utterance."""

import inspect
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from torchmetrics import MeanMetric, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix
from torchmetrics.text import WordErrorRate

from modules.base import HomeworkModule
from modules.nets.vocal_tract import VocalTract
from modules.nets.window_mlp import WindowMLP
from modules.pictures.classifiers import class_accuracy, confusion_matrix, labelled_frames
from modules.viterbi import viterbi

SHOWN = 400  # frames of the utterance that is drawn, at most


class PhonemeClassifier(HomeworkModule):
    """Cross-entropy over frames, by `members` networks of one kind whose probabilities are averaged.

    Args:
        optimizer: See HomeworkModule.
        net: Called with the width of the input; its `out` is what the linear layer after it sees. One whose forward
            takes (x, mask) labels whole utterances and needs data.window null; others see windows (B, n, D). Default:
            WindowMLP.
        members: Networks trained side by side on the same batches, from other weights.
        dropout: Before the linear layer.
        label_smoothing: Share of the target spread evenly over all classes (Szegedy et al. 2016, arXiv 1512.00567).
        augment: What is done to whole utterances in training, one after the other: VocalTract, SpecAugment, or any
            module that takes (x, mask).
        smoothing: Weight of how often classes followed each other in the training labels, against the networks'
            scores; with more than 0 the likeliest path (Viterbi) is the answer, not each frame's best class.
    """

    homework: ClassVar[str] = "hw2_phoneme"
    monitor: ClassVar[str] = "val/accuracy"
    mode: ClassVar[str] = "max"

    def __init__(
        self,
        optimizer: OptimizerCallable | None = None,
        net: Callable[..., nn.Module] | None = None,
        members: int = 1,
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
        augment: list[nn.Module] | None = None,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__(optimizer)
        if members < 1:
            raise MisconfigurationException(f"model.members is {members}: expected at least 1")
        if smoothing < 0:
            raise MisconfigurationException(f"model.smoothing is {smoothing}: expected 0 or more")
        for name, value in {"dropout": dropout, "label_smoothing": label_smoothing}.items():
            if not 0 <= value < 1:
                raise MisconfigurationException(f"model.{name} is {value}: expected 0 or more, below 1")
        self.save_hyperparameters(ignore=["optimizer", "net", "augment"])
        self.new_net: Callable[..., nn.Module] = net or WindowMLP
        self.members, self.dropout = members, dropout
        self.label_smoothing, self.smoothing = label_smoothing, smoothing
        self.augment = nn.ModuleList(augment or [])
        self._shown: tuple[Tensor, Tensor, Tensor] | None = None
        self.transitions: Tensor

    def build(self, facts: dict[str, Any]) -> None:
        """Create the networks and the metrics for so many classes."""
        window, count = facts["window"], len(facts["classes"])
        nets = [self.new_net(facts["features"] * (window or 1)) for _ in range(self.members)]
        whole = "mask" in inspect.signature(nets[0].forward).parameters
        if whole != (window is None):
            wanted = "null (this network labels whole utterances)" if whole else "a number of frames (it sees windows)"
            raise MisconfigurationException(
                f"data.window is {window or 'null'}, but model.net {type(nets[0]).__name__} needs {wanted}"
            )
        stride = getattr(nets[0], "stride", 1)
        if stride != 1:
            raise MisconfigurationException(f"model.net.stride is {stride}: expected 1, as every frame needs an answer")
        if len(self.augment) and not whole:
            raise MisconfigurationException("model.augment is for whole utterances; it needs data.window null")
        self.nets = nn.ModuleList(nets)
        widths: list[Any] = [net.out for net in nets]
        self.heads = nn.ModuleList(nn.Sequential(nn.Dropout(self.dropout), nn.Linear(width, count)) for width in widths)
        self.register_buffer("transitions", facts["transitions"], persistent=False)  # the facts keep them
        metrics: dict[str, Metric | MetricCollection] = {
            "accuracy": MulticlassAccuracy(count, average="micro", validate_args=False),
            "accuracy_without_silence": MulticlassAccuracy(
                count, average="micro", ignore_index=facts["silence"], validate_args=False
            ),
        }
        # no groups: torchmetrics would take the two for one where the first batch holds no silence
        self.val_metrics = MetricCollection(metrics, prefix="val/", compute_groups=False)
        self.test_metrics = self.val_metrics.clone("test/")
        self.val_loss, self.test_loss = MeanMetric(), MeanMetric()
        self.error = WordErrorRate()
        self.confusion = MulticlassConfusionMatrix(count, validate_args=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Class scores of every member: windows (B, n, D) -> (M, B, C); utterances (B, T, D) -> (M, B, T, C)."""
        x = x.to(self.transitions.dtype)
        if mask is None:
            return torch.stack([head(net(x)) for net, head in zip(self.nets, self.heads, strict=True)])
        scores = []
        for net, head in zip(self.nets, self.heads, strict=True):
            seen = x
            for part in self.augment:
                seen = part(seen, mask)
            scores.append(head(net(seen, mask)))
        return torch.stack(scores)

    def _frames(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Scores (M, F, C) of all frames that are there, one utterance after the other, and their rows (F,)."""
        if "mask" not in batch:
            return self(batch["x"]), batch["row"]
        mask = batch["mask"]
        return self(batch["x"], mask)[:, mask], batch["row"][mask]

    @staticmethod
    def _targets(batch: dict[str, Tensor]) -> Tensor:
        return batch["y"][batch["mask"]] if "mask" in batch else batch["y"]

    # training

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy, the mean over frames and members."""
        scores, _ = self._frames(batch)
        y = self._targets(batch)
        every = y.expand(self.members, -1)
        losses = F.cross_entropy(
            scores.flatten(0, 1), every.flatten(), label_smoothing=self.label_smoothing, reduction="sum"
        )
        # the members' sum is what is differentiated: each learns as if alone, but that clipping sees them together
        loss = self.global_mean(losses, len(y))
        self.track(loss / self.members, scores.argmax(-1) == every)
        return loss

    # judging

    def judge(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor, list[Tensor]]:
        """Log-probabilities (F, C), answers (F,), rows (F,), and the answers by utterance where its ends are known."""
        scores, rows = self._frames(batch)
        logs = scores.float().log_softmax(-1).logsumexp(0) - math.log(self.members)
        lengths = batch["mask"].sum(1) if "mask" in batch else batch.get("lengths")
        if lengths is None:
            if self.smoothing:
                raise MisconfigurationException("model.smoothing needs to know where utterances end; TIMIT-11 does not")
            return logs, logs.argmax(1), rows, []
        sizes = lengths.tolist()
        if not self.smoothing:
            said = logs.argmax(1)
        else:
            mask = torch.arange(max(sizes), device=logs.device) < lengths.to(logs.device).unsqueeze(1)
            padded = pad_sequence(list(logs.split(sizes)), batch_first=True)
            said = viterbi(padded, self.smoothing * self.transitions, mask)[mask]
        return logs, said, rows, list(said.split(sizes))

    def _evaluate(
        self, batch: dict[str, Tensor], name: str, metrics: MetricCollection, loss: MeanMetric
    ) -> tuple[Tensor, list[Tensor]]:
        """Returns the targets (F,), and the answers by utterance where its ends are known."""
        logs, said, _, utterances = self.judge(batch)
        y = self._targets(batch)
        metrics.update(said, y)
        loss.update(F.nll_loss(logs, y, reduction="none"))
        self.confusion.update(said, y)
        self.log_dict(metrics, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(y))
        self.log(f"{name}/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(y))
        if self._shown is None:
            first = slice(min(SHOWN, len(utterances[0]) if utterances else SHOWN))
            x = batch["x"][0] if "mask" in batch else batch["x"][:, batch["x"].shape[1] // 2]
            self._shown = x[first].float().cpu(), y[first].cpu(), said[first].cpu()
        return y, utterances

    def on_validation_epoch_start(self) -> None:
        """Forget the frames of the epoch before."""
        self._shown = None
        self.confusion.reset()

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Frame accuracy and cross-entropy on the utterances held out."""
        self._evaluate(batch, "val", self.val_metrics, self.val_loss)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """As validation, and the phone error rate, which is slow: edits are counted in Python."""
        y, utterances = self._evaluate(batch, "test", self.test_metrics, self.test_loss)
        if utterances:
            true = y.cpu().split([len(part) for part in utterances])
            self.error.update([phones(part.cpu()) for part in utterances], [phones(part) for part in true])
            self.log("test/phone_error_rate", self.error, on_step=False, on_epoch=True, batch_size=len(y))

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Row numbers (F,) and class probabilities (F, C); with smoothing 1 for the class on the likeliest path."""
        logs, said, rows, _ = self.judge(batch)
        sure = F.one_hot(said, logs.shape[1]).to(logs.dtype) if self.smoothing else logs.exp()
        return {"row": rows, "prediction": sure}

    # pictures

    def draw(self) -> dict[str, Figure]:
        """Confusions, accuracy by class, and one utterance with its true and its predicted phones."""
        if self.facts is None or not (self._shown or self.trainer.world_size > 1):
            return {}
        classes = self.facts["classes"]
        matrix = self.confusion.compute().cpu()  # all ranks take part
        figures = {"confusion": confusion_matrix(matrix, classes), "class_accuracy": class_accuracy(matrix, classes)}
        if self._shown is not None:
            x, true, said = self._shown
            figures["utterance"] = labelled_frames(spectrum(x), {"true": true, "predicted": said}, classes)
        return figures

    def tables(self) -> dict[str, tuple[list[str], list[list[Any]]]]:
        """Frames of each class judged last, and the share of them that was found."""
        if self._shown is None or self.facts is None:
            return {}
        matrix = self.confusion.compute().cpu()
        frames = matrix.sum(1)
        found = (matrix.diagonal() / frames.clamp(min=1)).tolist()
        rows = [[name, n, share] for name, n, share in zip(self.facts["classes"], frames.tolist(), found, strict=True)]
        return {"classes": (["class", "frames", "accuracy"], rows)}


def phones(labels: Tensor) -> str:
    """Runs of one class as one phone each, (T,) -> their numbers with spaces between.

    The phone error rate is the word error rate of these: edits over the length of the truth. Two neighbours of the
    same class count as one, as frame labels cannot tell them apart; silence counts as a phone.
    """
    return " ".join(map(str, labels.unique_consecutive().tolist()))


def spectrum(x: Tensor) -> Tensor:
    """The smooth log spectrum (T, 23) that the first 13 of the features (T, 39), MFCCs, stand for.

    They were normalised by utterance, so it shows what differs from the utterance's mean.
    """
    synthesis = VocalTract().synthesis.to(x.device)
    return x[:, : len(synthesis)] @ synthesis
