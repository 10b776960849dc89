"""HW4: who speaks: frames encoded by self-attention, pooled into one embedding, told apart by a linear layer."""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from modules.base import HomeworkModule
from modules.nets.attention import MultiHeadAttention
from modules.nets.embedder import Embedder
from modules.nets.frame_encoders import TransformerFrames
from modules.nets.margin import MarginSoftmax
from modules.nets.pooling import POOLINGS
from modules.pictures.classifiers import attention_maps, confusion_matrix, embedding
from modules.verification import EqualErrorRate

KEPT = 600  # judged utterances kept for the picture of the embeddings
CONFUSED = 14  # speakers in the picture of confusions; with the others there is room for numbers
DRAWN = 200  # frames of an attention map, at most


class SpeakerClassifier(HomeworkModule):
    """Cross-entropy over speakers, by `members` networks of one kind whose probabilities are averaged.

    Args:
        optimizer: See HomeworkModule.
        net: Encoder of frames, called with the width of the input: (B, T, D), mask (B, T) -> (B, T, net.out). Default:
            TransformerFrames.
        pooling: From frames to one vector: mean, max, statistics or attentive (see modules/nets/pooling.py).
        hidden: Width of a linear layer and ReLU after pooling, as in the course's sample; null: none.
        head: Called with the widths of embedding and output, such as MarginSoftmax; null: a linear layer.
        members: Networks trained side by side on the same batches, from other weights.
        dropout: Of the embedding, before the head.
        label_smoothing: Share of the target spread evenly over all speakers.
        normalise: Subtract each utterance's mean from every band first: a channel's colour falls away.
        augment: What is done to the stretches in training, such as SpecAugment: modules that take (x, mask).
    """

    homework: ClassVar[str] = "hw4_speaker"
    monitor: ClassVar[str] = "val/accuracy"
    mode: ClassVar[str] = "max"

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
    ) -> None:
        super().__init__(optimizer)
        if members < 1:
            raise MisconfigurationException(f"model.members is {members}: expected at least 1")
        for name, value in {"dropout": dropout, "label_smoothing": label_smoothing}.items():
            if not 0 <= value < 1:
                raise MisconfigurationException(f"model.{name} is {value}: expected 0 or more, below 1")
        self.save_hyperparameters(ignore=["optimizer", "net", "head", "augment"])
        self.new_net: Callable[..., nn.Module] = net or TransformerFrames
        self.pooling, self.hidden = pooling, hidden
        self.new_head: Callable[[int, int], nn.Module] = head or nn.Linear
        self.members, self.dropout, self.label_smoothing = members, dropout, label_smoothing
        self.normalise, self.augment = normalise, nn.ModuleList(augment or [])
        self._seen: list[tuple[Tensor, Tensor, Tensor]] = []
        self._shown: Tensor | None = None

    def build(self, facts: dict[str, Any]) -> None:
        """Create the networks and the metrics for so many speakers."""
        count = len(facts["classes"])
        self.nets, self.heads = nn.ModuleList(), nn.ModuleList()
        for _ in range(self.members):
            encoder: Any = self.new_net(facts["features"])
            net = Embedder(encoder, POOLINGS[self.pooling](encoder.out), self.hidden, self.dropout)
            self.nets.append(net)
            self.heads.append(self.new_head(net.out, count))
        metrics = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(count, average="micro", validate_args=False),
                "top5": MulticlassAccuracy(count, average="micro", top_k=min(5, count), validate_args=False),
            }
        )
        self.val_metrics, self.test_metrics = metrics.clone("val/"), metrics.clone("test/")
        self.val_loss, self.test_loss = MeanMetric(), MeanMetric()
        self.val_eer, self.test_eer = EqualErrorRate(), EqualErrorRate()

    def prepared(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Frames as the networks see them, (B, T, D) -> (B, T, D)."""
        x = x.float()
        if self.normalise:
            x = x - POOLINGS["mean"](x.shape[2])(x, mask).unsqueeze(1)
        for part in self.augment:
            x = part(x, mask)
        return x if mask is None else x.masked_fill(~mask.unsqueeze(2), 0.0)

    def embeddings(self, x: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """What each member makes of stretches (B, T, D): (B, E) each."""
        return [net(self.prepared(x, mask), mask) for net in self.nets]

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-probabilities of the members' mean, (B, T, D) -> (B, C)."""
        return self._mean([head(e) for head, e in zip(self.heads, self.embeddings(x, mask), strict=True)])

    def _mean(self, scores: list[Tensor]) -> Tensor:
        return torch.stack(scores).float().log_softmax(-1).logsumexp(0) - math.log(self.members)

    # training

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Cross-entropy, with the head's margin if it has one; the mean over utterances and members."""
        y = batch["y"]
        total, right = torch.zeros((), device=y.device), []
        for head, e in zip(self.heads, self.embeddings(batch["x"], batch.get("mask")), strict=True):
            scores = head(e, y) if isinstance(head, MarginSoftmax) else head(e)
            total = total + F.cross_entropy(scores, y, label_smoothing=self.label_smoothing, reduction="sum")
            right.append(scores.argmax(1) == y)
        # the members' sum is what is differentiated: each learns as if alone, but that clipping sees them together
        loss = self.global_mean(total, len(y))
        self.track(loss / self.members, torch.stack(right))
        return loss

    # judging

    def _evaluate(
        self, batch: dict[str, Tensor], name: str, metrics: MetricCollection, loss: MeanMetric, eer: EqualErrorRate
    ) -> None:
        y = batch["y"]
        found = self.embeddings(batch["x"], batch.get("mask"))
        logs = self._mean([head(e) for head, e in zip(self.heads, found, strict=True)])
        # the members' cosines are averaged: that is the cosine of their unit vectors side by side
        together = torch.cat([F.normalize(e.float()) for e in found], dim=1)
        metrics.update(logs, y)
        loss.update(F.nll_loss(logs, y, reduction="none"))
        eer.update(together, y)
        self.log_dict(metrics, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(y))
        self.log(f"{name}/loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=len(y))
        self.log(f"{name}/equal_error_rate", eer, on_step=False, on_epoch=True, batch_size=len(y))
        self._seen.append((logs.argmax(1).cpu(), y.cpu(), together.cpu()))
        if self._shown is None:
            first = batch["x"][:1] if "mask" not in batch else batch["x"][:1, : int(batch["mask"][0].sum())]
            self._shown = first[:, :DRAWN].float()

    def on_validation_epoch_start(self) -> None:
        """Forget the utterances of the epoch before."""
        self._seen, self._shown = [], None

    on_test_epoch_start = on_validation_epoch_start

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Accuracy, top-5, equal error rate and cross-entropy on the utterances held out."""
        self._evaluate(batch, "val", self.val_metrics, self.val_loss, self.val_eer)

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """As validation, on test utterances whose speakers are known."""
        self._evaluate(batch, "test", self.test_metrics, self.test_loss, self.test_eer)

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> dict[str, Tensor]:
        """Row numbers (B,) and class probabilities (B, C)."""
        return {"row": batch["row"], "prediction": self(batch["x"], batch.get("mask")).exp()}

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
        self.nets[0](self.prepared(x.to(self.device), None))
        for hook in hooks:
            hook.remove()
        return found

    def draw(self) -> dict[str, Figure]:
        """Attention of one utterance, embeddings in 2-D, and the speakers that are confused most."""
        if not self._seen or self.facts is None or self._shown is None:
            return {}
        training, classes = self.training, self.facts["classes"]
        self.eval()
        said, true, together = (torch.cat(part) for part in zip(*self._seen, strict=True))
        figures = {}
        maps = self.attention(self._shown)
        if maps:
            figures["attention"] = attention_maps(self._shown[0].cpu(), maps)
        if len(true) >= 30:  # fewer points show nothing
            figures["embeddings"] = embedding({"speakers' embeddings": together[:KEPT]}, true[:KEPT], classes)
        figures["most_confused"] = self._most_confused(true, said, classes)
        self.train(training)
        return figures

    @staticmethod
    def _most_confused(true: Tensor, said: Tensor, classes: list[str]) -> Figure:
        """Speakers with most mistakes of either kind, all the others together in a last row and column."""
        matrix = torch.zeros(len(classes), len(classes)).index_put_((true, said), torch.ones(len(true)), True)
        mistakes = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diag()
        count = max(2, min(CONFUSED, int(mistakes.count_nonzero())))
        worst = mistakes.argsort(descending=True, stable=True)[:count].sort().values
        others = torch.ones(len(classes), dtype=torch.bool).index_fill_(0, worst, False)
        names = [classes[i] for i in worst.tolist()]
        chosen = torch.eye(len(classes))[worst]
        if others.any():
            chosen, names = torch.cat([chosen, others.float().unsqueeze(0)]), [*names, "others"]
        figure = confusion_matrix(chosen @ matrix @ chosen.T, names)
        right = (true == said).float().mean()
        figure.axes[0].set_title(f"the {count} most confused of {len(classes)} speakers; accuracy of all {right:.3f}")
        return figure

    def tables(self) -> dict[str, tuple[list[str], list[list[Any]]]]:
        """True and predicted speaker of the utterances judged last."""
        if not self._seen or self.facts is None:
            return {}
        classes = self.facts["classes"]
        said, true, _ = (torch.cat(part) for part in zip(*self._seen, strict=True))
        rows = [[classes[t], classes[s]] for t, s in zip(true.tolist()[:5000], said.tolist()[:5000], strict=True)]
        return {"held_out": (["true", "predicted"], rows)}
