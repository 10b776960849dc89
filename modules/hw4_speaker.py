"""HW4: who speaks: frames encoded by self-attention, pooled into one embedding, told apart by a linear layer."""

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from modules.cast_weights import weights_cast_once
from modules.classifier import Classifier, Judged, check_shares, mean_log_probabilities
from modules.nets.attention import MultiHeadAttention
from modules.nets.embedder import Embedder
from modules.nets.frame_encoders import TransformerFrames
from modules.nets.margin import MarginSoftmax
from modules.nets.mlp import Activation
from modules.nets.pooling import POOLINGS
from modules.pictures.classifiers import attention_maps, confusion_matrix, embedding
from modules.verification import EqualErrorRate

KEPT = 600  # judged utterances kept for the picture of the embeddings
CONFUSED = 14  # speakers in the picture of confusions; with the others there is room for numbers
DRAWN = 200  # frames of an attention map, at most


class SpeakerClassifier(Classifier):
    """Cross-entropy over speakers, by `members` networks of one kind whose probabilities are averaged.

    Args:
        optimizer: See HomeworkModule.
        net: Encoder of frames, called with the width of the input: (B, T, D), mask (B, T) -> (B, T, net.out). Default:
            TransformerFrames.
        pooling: From frames to one vector: mean, max, statistics or attentive (see modules/nets/pooling.py).
        hidden: Width of a linear layer after pooling, as in the course's code; null: none.
        head: Called with the widths of embedding and output, such as MarginSoftmax; null: a linear layer.
        members: Networks trained side by side on the same batches, from other weights.
        dropout: Of the embedding, before the head.
        label_smoothing: Share of the target spread evenly over all speakers.
        normalise: Subtract each utterance's mean from every band first: a channel's colour falls away.
        augment: What is done to the stretches in training, such as SpecAugment: modules that take (x, mask).
        activation: After the hidden layer: relu in the course's code of 2021 and 2022, sigmoid in that of 2023.
        focal: gamma of the focal loss (see modules/losses.py); 0: cross-entropy.
    """

    homework: ClassVar[str] = "hw4_speaker"

    def __init__(
        self,
        optimizer: OptimizerCallable | None = None,
        net: Callable[..., nn.Module] | None = None,
        pooling: Literal["mean", "max", "statistics", "attentive"] = "mean",
        hidden: int | None = None,
        head: Callable[[int, int], nn.Module] | None = None,  # ... would leave only the first argument to be given
        members: int = 1,
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
        normalise: bool = False,
        augment: list[nn.Module] | None = None,
        activation: Activation = "relu",
        focal: float = 0.0,
    ) -> None:
        super().__init__(optimizer, members, label_smoothing, focal)
        check_shares(dropout=dropout)
        self.save_hyperparameters(ignore=["optimizer", "net", "head", "augment"])
        self.new_net: Callable[..., nn.Module] = net or TransformerFrames
        self.pooling, self.hidden, self.activation = pooling, hidden, activation
        self.new_head: Callable[[int, int], nn.Module] = head or nn.Linear
        self.dropout, self.normalise, self.augment = dropout, normalise, nn.ModuleList(augment or [])
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self._shown: Tensor | None = None

    def build(self, facts: dict[str, Any]) -> None:
        """Create the networks and the metrics for so many speakers."""
        count = len(facts["classes"])
        self.nets, self.heads = nn.ModuleList(), nn.ModuleList()
        for _ in range(self.members):
            encoder: Any = self.new_net(facts["features"])
            pool = POOLINGS[self.pooling](encoder.out)
            net = Embedder(encoder, pool, self.hidden, self.dropout, self.activation)
            self.nets.append(net)
            self.heads.append(self.new_head(net.out, count))
        self.build_metrics(
            count, top5=MulticlassAccuracy(count, average="micro", top_k=min(5, count), validate_args=False)
        )
        self.val_eer, self.test_eer = EqualErrorRate(), EqualErrorRate()

    def prepared(self, x: Tensor, mask: Tensor | None) -> tuple[Tensor, ...]:
        """Frames as each member sees them, (B, T, D) -> (B, T, D) each."""
        x = x.float()
        if self.normalise:
            x = x - POOLINGS["mean"](x.shape[2])(x, mask).unsqueeze(1)
        x = x if mask is None else x.masked_fill(~mask.unsqueeze(2), 0.0)
        return self.augmented(x, mask)

    def embeddings(self, x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """What each member makes of stretches (B, T, D): (B, E) each."""
        return [net(seen, mask) for net, seen in zip(self.nets, self.prepared(x, mask), strict=True)]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-probabilities of the members' mean, (B, T, D) -> (B, C)."""
        return self._logs(self.embeddings(x, mask))

    def _logs(self, found: list[Tensor]) -> Tensor:
        return mean_log_probabilities(self._scores(found))

    def _scores(self, found: list[Tensor], y: Tensor | None = None) -> Tensor:
        """Logits (M, B, C) of embeddings (B, E) each; with classes (B,) less the head's margin, if it has one."""
        first = self.heads[0]
        if not isinstance(first, MarginSoftmax):
            return torch.stack([head(e) for head, e in zip(self.heads, found, strict=True)])
        if self.compiled:
            return torch.stack([head(e, y) for head, e in zip(self.heads, found, strict=True)])
        weights: Any = [head.weight for head in self.heads]
        return first.logits(torch.stack(found), torch.stack(weights), y)  # all members at once

    @weights_cast_once
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy, with the head's margin if it has one; the mean over utterances and members."""
        y, found = batch["y"], self.embeddings(batch["x"], batch.get("mask"))
        return self.members_loss(self._scores(found, y), y)

    # judging

    def judge(self, batch: dict[str, Tensor]) -> Judged:
        """The members' mean, and their unit embeddings side by side: a cosine of those is the mean of the cosines."""
        found = self.embeddings(batch["x"], batch.get("mask"))
        logs = self._logs(found)
        return Judged(logs, torch.cat([F.normalize(e.float()) for e in found], dim=1))

    def evaluate(self, batch: dict[str, Tensor], stage: Literal["val", "test"]) -> tuple[Judged, Tensor]:
        """Collect embeddings too, for the equal error rate of all pairs of utterances."""
        judged, y = super().evaluate(batch, stage)
        assert judged.embeddings is not None
        (self.val_eer if stage == "val" else self.test_eer).update(judged.embeddings, y)
        return judged, y

    def _log_error_rate(self, stage: Literal["val", "test"], error: EqualErrorRate) -> None:
        if (rate := error.compute()).isfinite():  # it is not defined where no two utterances are of one speaker
            self.log(f"{stage}/equal_error_rate", rate)
        error.reset()

    def on_validation_epoch_end(self) -> None:
        """Log the equal error rate."""
        self._log_error_rate("val", self.val_eer)

    def on_test_epoch_end(self) -> None:
        """Log the equal error rate."""
        self._log_error_rate("test", self.test_eer)

    def remember(self, batch: dict[str, Tensor], judged: Judged, y: Tensor) -> None:
        """Keep answers and embeddings, and the frames of the first utterance."""
        assert judged.embeddings is not None
        self._seen.append((judged.answers.cpu(), y.cpu(), judged.embeddings.cpu()))
        if self._shown is None:
            first = batch["x"][:1] if "mask" not in batch else batch["x"][:1, : int(batch["mask"][0].sum())]
            self._shown = first[:, :DRAWN].float()

    def forget(self) -> None:
        """Drop the utterances of the epoch before."""
        self._seen, self._shown = [], None

    # pictures

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")  # hooks look into the network
    def attention(self, x: Tensor) -> dict[str, Tensor]:
        """Weights of every self-attention of the first member over frames x (1, T, D): layer -> (heads, T', T').

        T' is T, or ceil(T / stride) of a network with a stride.
        """
        found: dict[str, Tensor] = {}
        parts = [m for m in self.nets[0].modules() if isinstance(m, MultiHeadAttention)]
        hooks = []
        for number, part in enumerate(parts, 1):

            def keep(module: Any, args: tuple[Any, ...], layer: str = f"layer {number}") -> None:
                found[layer] = module.weights(*args)[0].float().cpu()

            hooks.append(part.register_forward_pre_hook(keep))
        self.nets[0](self.prepared(x.to(self.device), None)[0])
        for hook in hooks:
            hook.remove()
        return found

    def draw(self) -> dict[str, Figure]:
        """Attention of one utterance, embeddings in 2-D, and the speakers that are confused most."""
        found = self.confusions()
        if found is None or self._shown is None:
            return {}
        training = self.training
        self.eval()
        figures = {"most_confused": most_confused(*found)}
        maps = self.attention(self._shown)
        if maps:
            figures["attention"] = attention_maps(self._shown[0].cpu(), maps)
        _, true, together = (torch.cat(part) for part in zip(*self._seen, strict=True))
        if len(true) >= 30:  # fewer points show nothing
            figures["embeddings"] = embedding({"speakers' embeddings": together[:KEPT]}, true[:KEPT], found[1])
        self.train(training)
        return figures

    def tables(self) -> dict[str, tuple[list[str], list[list[Any]]]]:
        """True and predicted speaker of the utterances judged last."""
        if not self._seen or self.facts is None:
            return {}
        classes = self.facts["classes"]
        said, true, _ = (torch.cat(part) for part in zip(*self._seen, strict=True))
        rows = [[classes[t], classes[s]] for t, s in zip(true.tolist()[:5000], said.tolist()[:5000], strict=True)]
        return {"held_out": (["true", "predicted"], rows)}


def most_confused(matrix: Tensor, classes: list[str]) -> Figure:
    """Speakers with most mistakes of either kind, all the others together in a last row and column.

    Args:
        matrix: How often each speaker was taken for each other, (C, C).
        classes: Their names.
    """
    matrix = matrix.float()
    mistakes = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diag()
    count = max(2, min(CONFUSED, int(mistakes.count_nonzero())))
    worst = mistakes.argsort(descending=True, stable=True)[:count].sort().values
    others = torch.ones(len(classes), dtype=torch.bool).index_fill_(0, worst, False)
    names = [classes[i] for i in worst.tolist()]
    chosen = torch.eye(len(classes))[worst]
    if others.any():
        chosen, names = torch.cat([chosen, others.float().unsqueeze(0)]), [*names, "others"]
    figure = confusion_matrix(chosen @ matrix @ chosen.T, names)
    right = matrix.trace() / matrix.sum().clamp(min=1)
    said = f"the {count} most confused of {len(classes)} speakers; accuracy of all {right:.3f}"
    figure.axes[0].set_title(said, fontsize=9)
    return figure
