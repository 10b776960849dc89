"""HW2: the phone of every frame, from a window around it or from the whole utterance."""

import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.text import WordErrorRate

from modules.cast_weights import weights_cast_once
from modules.classifier import Classifier, Judged, check_shares, mean_log_probabilities
from modules.crf import chain_loss, log_posteriors
from modules.nets.attention import padding_mask
from modules.nets.vocal_tract import VocalTract, warped
from modules.nets.window_mlp import WindowMLP
from modules.pictures.classifiers import class_accuracy, confusion_matrix, labelled_frames
from modules.viterbi import viterbi

SHOWN = 400  # frames of the utterance that is drawn, at most
SHARPNESS = 30.0  # of weights against the entropy of a frame in nats; chosen on two folds of TIMIT speakers


class PhonemeClassifier(Classifier):
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
            scores; with more than 0 a frame's answer is the likeliest over all label sequences of its utterance, and
            phones are read from the best sequence (Viterbi).
        crf: Train these weights together with the network, from there on: the loss is that of whole label sequences
            (modules/crf.py). It needs data.window null, and has no use for the other losses.
        focal: gamma of the focal loss (see modules/losses.py); 0: cross-entropy.
        vtln: In tests and predictions, as how many throats each utterance is heard, evenly over the range of the
            VocalTract in `augment`, which it needs (vocal tract length normalisation, Lee and Rose 1996); 0: as it is.
    """

    homework: ClassVar[str] = "hw2_phoneme"

    def __init__(
        self,
        optimizer: OptimizerCallable | None = None,
        net: Callable[..., nn.Module] | None = None,
        members: int = 1,
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
        augment: list[nn.Module] | None = None,
        smoothing: float = 0.0,
        crf: bool = False,
        focal: float = 0.0,
        vtln: int = 0,
    ) -> None:
        super().__init__(optimizer, members, label_smoothing, focal)
        check_shares(dropout=dropout)
        if smoothing < 0:
            raise MisconfigurationException(f"model.smoothing is {smoothing}: expected 0 or more")
        for name, value in {"label_smoothing": label_smoothing, "focal": focal}.items():
            if crf and value:
                raise MisconfigurationException(f"model.{name} is {value}, but the loss of model.crf has no use for it")
        self.save_hyperparameters(ignore=["optimizer", "net", "augment"])
        self.new_net: Callable[..., nn.Module] = net or WindowMLP
        self.dropout, self.smoothing, self.crf, self.vtln = dropout, smoothing, crf, vtln
        self.augment = nn.ModuleList(augment or [])
        if vtln and (vtln < 2 or not self._tracts()):
            raise MisconfigurationException(
                f"model.vtln is {vtln}: expected 0, or 2 and more together with VocalTract in model.augment"
            )
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
        for name in ("augment", "crf"):
            if getattr(self, name) and not whole:
                raise MisconfigurationException(f"model.{name} is for whole utterances; it needs data.window null")
        self.nets = nn.ModuleList(nets)
        widths: list[Any] = [net.out for net in nets]
        self.heads = nn.ModuleList(nn.Sequential(nn.Dropout(self.dropout), nn.Linear(width, count)) for width in widths)
        self.register_buffer("transitions", facts["transitions"], persistent=False)  # the facts keep them
        if self.crf:
            self.chain = nn.Parameter((self.smoothing * self.transitions).repeat(self.members, 1, 1))
        self.error = WordErrorRate()
        self.build_metrics(
            count,
            accuracy_without_silence=MulticlassAccuracy(
                count, average="micro", ignore_index=facts["silence"], validate_args=False
            ),
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Class scores of every member: windows (B, n, D) -> (M, B, C); utterances (B, T, D) -> (M, B, T, C)."""
        x = x.to(self.transitions.dtype)
        if mask is None:
            return torch.stack([head(net(x)) for net, head in zip(self.nets, self.heads, strict=True)])
        seen = self.augmented(x, mask)
        return torch.stack([head(net(s, mask)) for net, head, s in zip(self.nets, self.heads, seen, strict=True)])

    def of_each_row(self, batch: dict[str, Any], name: str) -> Tensor:
        """The batch's `y` or `row` of all frames that are there (F,), one utterance after the other."""
        return batch[name].flatten().index_select(0, batch["places"]) if "mask" in batch else batch[name]

    def scores(self, batch: dict[str, Any]) -> Tensor:
        """Class scores of every member (M, F, C) for all frames that are there, one utterance after the other."""
        if "mask" not in batch:
            return self(batch["x"])
        # a mask as index would wait for the device, to learn how many frames there are
        return self(batch["x"], batch["mask"]).flatten(1, 2).index_select(1, batch["places"])

    @weights_cast_once
    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        """Cross-entropy of frames or, with `crf`, of label sequences; the mean over frames and members."""
        scores, y = self.scores(batch), self.of_each_row(batch, "y")
        losses = None
        if self.crf:
            spoken = Spoken(batch["lengths"], scores.device)
            losses = chain_loss(
                spoken.pad(scores), self.chain, spoken.pad(y.unsqueeze(1)).squeeze(2), spoken.mask
            ).sum()
        return self.members_loss(scores, y, losses)

    # judging

    def _tracts(self) -> list[VocalTract]:
        return [part for part in self.augment if isinstance(part, VocalTract)]

    def throats(self) -> Tensor:
        """What a frame's 13 coefficients are multiplied with in tests and predictions, (K, 13, 13); K is `vtln`."""
        return self._tracts()[0].throats(self.vtln) if self.vtln else torch.empty(0, 13, 13)

    def heard(self, batch: dict[str, Any]) -> Tensor:
        """Logarithm of the members' mean probabilities (F, C); with `vtln` the mean over throats, by how sure they are.

        Nobody knows the throat of an utterance, but heard as one that the networks know, its phones are clearer. A
        throat's weight falls with the mean entropy of its frames (the idea of Misra et al. 2003 for several streams of
        features). Validations, of which there are many, do without. `evaluate` keeps it as `heard` of the batch.
        """
        if "heard" in batch:
            return batch["heard"]
        if not self.vtln or (self._trainer is not None and self._trainer.validating):
            return mean_log_probabilities(self.scores(batch))
        x = batch["x"].to(self.transitions.dtype)
        views = [batch | {"x": warped(x, matrix)} for matrix in self.throats()]
        every = torch.stack([mean_log_probabilities(self.scores(view)) for view in views])  # (K, F, C)
        spoken = Spoken(batch["lengths"], every.device)
        certainty = spoken.pad((every.exp() * every).sum(2, keepdim=True)).squeeze(3)  # (K, U, T), minus the entropy
        weights = (SHARPNESS * certainty.sum(2) / spoken.mask.sum(1)).log_softmax(0)  # (K, U)
        each = weights.unsqueeze(2).expand_as(certainty).flatten(1).index_select(1, spoken.places)
        return (every + each.unsqueeze(2)).logsumexp(0)

    def followers(self) -> Tensor:
        """What a step from one class to another adds to the score of a path, (C, C)."""
        return self.chain.mean(0) if self.crf else self.smoothing * self.transitions

    def _smoothed(self, batch: dict[str, Any], decode: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """What `decode` makes of the members' mean (U, T, C), `followers` and mask: (U, T, ...) -> (F, ...)."""
        sizes = batch.get("lengths")
        if not sizes:
            raise MisconfigurationException(
                "model.smoothing needs to know where utterances end, which TIMIT-11's rows do not say in another order "
                "than the course's; set it to 0"
            )
        logs = self.heard(batch)
        spoken = Spoken(sizes, logs.device)
        found = decode(spoken.pad(logs), self.followers(), spoken.mask)
        return found.flatten(0, 1).index_select(0, spoken.places)

    def judge(self, batch: dict[str, Any]) -> Judged:
        """The members' mean; with smoothing the probabilities over all label sequences of an utterance."""
        if self.smoothing or self.crf:
            return Judged(self._smoothed(batch, log_posteriors))
        return Judged(self.heard(batch))

    def labels(self, batch: dict[str, Any]) -> Tensor:
        """The best label sequence of each utterance as a whole, which its phones are read from: (F,)."""
        return self._smoothed(batch, viterbi) if self.smoothing or self.crf else self.judge(batch).answers

    def evaluate(self, batch: dict[str, Any], stage: Literal["val", "test"]) -> tuple[Judged, Tensor]:
        """In a test the phone error rate too, which is slow: edits are counted in Python."""
        batch = batch | {"heard": self.heard(batch)}  # for frames and phones
        judged, y = super().evaluate(batch, stage)
        if stage == "test" and (sizes := batch.get("lengths")):
            said, true = ([phones(part) for part in labels.cpu().split(sizes)] for labels in (self.labels(batch), y))
            self.error.update(said, true)
            self.log("test/phone_error_rate", self.error, on_step=False, on_epoch=True, batch_size=len(y))
        return judged, y

    def remember(self, batch: dict[str, Any], judged: Judged, y: Tensor) -> None:
        """Keep the first utterance, or its beginning."""
        if self._shown is None:
            first = slice(min(SHOWN, batch.get("lengths", [SHOWN])[0]))
            x, utterances = batch["x"], "mask" in batch
            x = x.flatten(0, 1)[batch["places"][first]] if utterances else x[first, x.shape[1] // 2]
            self._shown = x.float().cpu(), y[first].cpu(), judged.answers[first].cpu()

    def forget(self) -> None:
        """Drop the utterance of the epoch before."""
        self._shown = None

    # pictures

    def draw(self) -> dict[str, Figure]:
        """Confusions, accuracy by class, and one utterance with its true and its predicted phones."""
        if (found := self.confusions()) is None:
            return {}
        matrix, classes = found
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


class Spoken:
    """Where the frames of U utterances lie when they are padded to T.

    Args:
        lengths: Frames of each utterance.
        device: Of the frames.
    """

    def __init__(self, lengths: list[int], device: torch.device) -> None:
        mask = padding_mask(torch.tensor(lengths), max(lengths))
        self.mask = mask.to(device, non_blocking=True)
        """(U, T), True for the frames that are there."""
        self.places = mask.flatten().nonzero().squeeze(1).to(device, non_blocking=True)
        """Of all F frames, as numbers into the flattened (U, T)."""

    def pad(self, values: Tensor) -> Tensor:
        """One utterance after the other, (..., F, D) -> (..., U, T, D) with zeros."""
        wide = values.new_zeros(*values.shape[:-2], self.mask.numel(), values.shape[-1])
        return wide.index_copy(-2, self.places, values).unflatten(-2, self.mask.shape)


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
