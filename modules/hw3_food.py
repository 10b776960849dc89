"""HW3: classification of food photos, with what the course hints at: augmentation, mixing, TTA, pseudo-labels."""

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from modules.cast_weights import weights_cast_once
from modules.classifier import Classifier, Judged, check_shares
from modules.mixing import cutmix, mixup
from modules.nets.resnet import ResNet
from modules.pictures.classifiers import class_accuracy, confusion_matrix, embedding, filters, heatmaps, sheet
from modules.pictures.grad_cam import grad_cam

KEPT = 512  # judged images kept for the pictures, or somewhat more: every n-th of each batch
WORST = 24  # mistakes on a sheet


class FoodClassifier(Classifier):
    """Cross-entropy over classes, on images uint8 that are normalised on the device.

    Args:
        optimizer: See HomeworkModule.
        net: Called with num_classes: a class of modules.nets by class_path, or any model of torchvision (but googlenet
            and inception, which return several scores), such as torchvision.models.efficientnet_b0 (its name alone;
            without pretrained weights, as the course demands).
        label_smoothing: Share of the target spread evenly over all classes (Szegedy et al. 2016, arXiv 1512.00567).
        mixup: Alpha of mixup, 0 for none (see modules/mixing.py).
        cutmix: Alpha of CutMix; with both, each batch takes one of them by chance.
        pseudo_threshold: Confidence from which the class that the network sees in an unlabelled image counts as its
            label (FixMatch, Sohn et al. 2020, arXiv 2001.07685; needs data.unlabelled).
        pseudo_weight: Weight of the loss on unlabelled images.
        focal: gamma of the focal loss (see modules/losses.py); 0: cross-entropy.
    """

    homework: ClassVar[str] = "hw3_food"

    def __init__(
        self,
        optimizer: OptimizerCallable | None = None,
        net: Callable[..., nn.Module] | None = None,
        label_smoothing: float = 0.0,
        mixup: float = 0.0,
        cutmix: float = 0.0,
        pseudo_threshold: float = 0.95,
        pseudo_weight: float = 1.0,
        focal: float = 0.0,
    ) -> None:
        super().__init__(optimizer, label_smoothing=label_smoothing, focal=focal)
        check_shares(pseudo_threshold=pseudo_threshold)
        for name, value in {"mixup": mixup, "cutmix": cutmix, "pseudo_weight": pseudo_weight}.items():
            if value < 0:
                raise MisconfigurationException(f"model.{name} is {value}: expected 0 or more")
        if isinstance(net, nn.Module):
            raise MisconfigurationException(
                "model.net is a finished network, but the number of classes comes from the data: name the function "
                "alone, as in net: torchvision.models.efficientnet_b0"
            )
        self.save_hyperparameters(ignore=["optimizer", "net"])
        self.new_net: Callable[..., nn.Module] = net or ResNet
        self.mixup, self.cutmix = mixup, cutmix
        self.pseudo_threshold, self.pseudo_weight = pseudo_threshold, pseudo_weight
        self._seen: list[tuple[Tensor, Tensor]] = []
        self._images: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._worst: list[tuple[float, int, int, Tensor]] = []
        self.scale: Tensor
        self.shift: Tensor

    def build(self, facts: dict[str, Any]) -> None:
        """Create the network and the metrics for so many classes."""
        self.classes = count = len(facts["classes"])
        self.net = self.new_net(num_classes=count).to(memory_format=torch.channels_last)
        mean, deviation = (facts[name].view(3, 1, 1) for name in ("mean", "deviation"))
        self.register_buffer("scale", 1 / (255 * deviation), persistent=False)  # the facts keep them
        self.register_buffer("shift", -mean / deviation, persistent=False)
        macro = MulticlassAccuracy(count, average="macro", validate_args=False)
        self.build_metrics(count, class_accuracy=macro)

    def normalised(self, x: Tensor) -> Tensor:
        """Images uint8 (B, 3, H, W) as the network takes them: floats, channels last."""
        # by rows of pixels: in this memory format a loop over the 3 numbers of one pixel would be three times as slow
        row = (1, 3, 1, x.shape[-1])
        shift, scale = (t.expand(row).contiguous(memory_format=torch.channels_last) for t in (self.shift, self.scale))
        return torch.addcmul(shift, x.to(shift.dtype), scale)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of images uint8, (B, 3, H, W) -> (B, C)."""
        return self.net(self.normalised(x))

    # training

    @weights_cast_once
    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Mean cross-entropy over the labelled images, plus that over confident unlabelled ones."""
        x, y = self.normalised(batch["x"]), batch["y"]
        target = F.one_hot(y, self.classes).to(x.dtype)
        mixing = self.mixup > 0 or self.cutmix > 0
        if mixing:
            use_cutmix = self.cutmix > 0 and (self.mixup == 0 or bool(torch.rand(()) < 0.5))
            x, target = cutmix(x, target, self.cutmix) if use_cutmix else mixup(x, target, self.mixup)
        if "weak" in batch:
            logits, extra = self._pseudo_labelled(x, batch)
        else:
            logits, extra = self.net(x), torch.zeros((), device=x.device)
        losses = self.row_losses(logits, target)
        right = None if mixing else logits.argmax(1) == y
        return self.track(self.global_mean(losses, len(y)) + self.pseudo_weight * extra, right)

    def _pseudo_labelled(self, x: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Scores of the labelled images, and the FixMatch loss (eq. 4): the strong view must look like the weak one.

        The pseudo-label is given in evaluation mode, so that neither dropout nor the batch's statistics blur it.
        """
        self.net.eval()
        with torch.no_grad():
            sure, label = self(batch["weak"]).softmax(1).max(1)
        self.net.train()
        logits = self.net(torch.cat([x, self.normalised(batch["strong"])]))
        kept = (sure >= self.pseudo_threshold).to(logits.dtype)
        losses = F.cross_entropy(logits[len(x) :], label, reduction="none") * kept
        self.log("train/pseudo_labelled", kept.mean(), on_step=False, on_epoch=True, batch_size=len(kept))
        return logits[: len(x)], self.global_mean(losses.sum(), len(kept))

    # judging

    def scores(self, batch: dict[str, Tensor]) -> Tensor:
        """Class scores (B, C); with augmented views the course's formula: half the plain image's, half their mean."""
        plain = self(batch["x"])
        if "views" not in batch:
            return plain
        views = batch["views"]  # (B, K, 3, H, W)
        each = self(views.flatten(0, 1).contiguous(memory_format=torch.channels_last))
        return 0.5 * plain + 0.5 * each.view(*views.shape[:2], -1).mean(1)

    def judge(self, batch: dict[str, Tensor]) -> Judged:
        """Log-probabilities, with the views of test-time augmentation where there are some."""
        logs = self.scores(batch).float().log_softmax(1)
        return Judged(logs)

    def remember(self, batch: dict[str, Tensor], judged: Judged, y: Tensor) -> None:
        """Keep all answers, every n-th image, and the surest mistakes."""
        counts = self.trainer.num_val_batches or self.trainer.num_test_batches
        batches = sum(counts) if isinstance(counts, list) else int(counts)
        step = max(1, len(y) * int(batches) // KEPT)
        shares, y = judged.probabilities.cpu(), y.cpu()
        self._seen.append((shares, y))
        self._images.append(batch["x"][::step].cpu().clone())  # not a view, which would keep the whole batch
        self._labels.append(y[::step])
        sure, label = shares.max(1)
        wrong = (label != y).nonzero().flatten()
        for i in wrong[sure[wrong].argsort(descending=True)[:WORST]].tolist():
            self._worst.append((float(sure[i]), int(y[i]), int(label[i]), batch["x"][i].cpu().clone()))
        self._worst = sorted(self._worst, key=lambda entry: -entry[0])[:WORST]

    def forget(self) -> None:
        """Drop the images of the epoch before."""
        self._seen, self._images, self._labels, self._worst = [], [], [], []

    # pictures

    def stages(self) -> list[nn.Module]:
        """Parts of the network whose outputs are feature maps, first to last."""
        own = getattr(self.net, "stages", None)  # our networks name them; of another one its convolutions
        return own if isinstance(own, list) else [m for m in self.net.modules() if isinstance(m, nn.Conv2d)]

    @torch.no_grad()
    def features(self, images: Tensor) -> dict[str, Tensor]:
        """What the middle and the last stage make of images (N, 3, S, S): layer -> means over space (N, D)."""
        stages = self.stages()
        chosen = {"middle layer": stages[(len(stages) - 1) // 2], "last layer": stages[-1]}
        found: dict[str, list[Tensor]] = {name: [] for name in chosen}

        def keep(name: str) -> Any:
            return lambda module, args, out: found[name].append(out.float().mean((2, 3)).cpu())

        hooks = [stage.register_forward_hook(keep(name)) for name, stage in chosen.items()]
        for part in images.split(64):
            self(part.to(self.device))
        for hook in hooks:
            hook.remove()
        return {name: torch.cat(parts) for name, parts in found.items()}

    @torch.compiler.set_stance("force_eager")  # hooks look into the network
    def draw(self) -> dict[str, Figure]:
        """Confusions, accuracy by class, worst mistakes, Grad-CAM, features in 2-D and first filters."""
        if (found := self.confusions()) is None or not self._seen:
            return {}
        (matrix, classes), training = found, self.net.training
        self.net.eval()
        images, labels = torch.cat(self._images), torch.cat(self._labels)
        figures = {
            "confusion": confusion_matrix(matrix, classes),
            "class_accuracy": class_accuracy(matrix, classes),
        }
        first = next((m for m in self.net.modules() if isinstance(m, nn.Conv2d)), None)
        if first is not None and first.in_channels == 3:
            figures["first_filters"] = filters(first.weight.detach().float().cpu())
        if self._worst:
            titles = [
                f"said {classes[said]} ({sure:.0%})\ntruth {classes[true]}" for sure, true, said, _ in self._worst
            ]
            figures["worst_mistakes"] = sheet(torch.stack([image for *_, image in self._worst]), titles)
        if self.stages() and len(images) >= 30:  # fewer points show nothing
            figures["features"] = embedding(self.features(images), labels, classes)
        if self.stages():
            some = torch.linspace(0, len(images) - 1, min(8, len(images))).long()
            x = self.normalised(images[some].to(self.device))
            with torch.no_grad():
                said = self.net(x).argmax(1)
            maps = grad_cam(self.net, self.stages()[-1], x, said).float().cpu()
            pairs = torch.stack((said.cpu(), labels[some]), dim=1).tolist()
            titles = [f"said {classes[answer]}\ntruth {classes[true]}" for answer, true in pairs]
            figures["grad_cam"] = heatmaps(images[some], maps, titles)
        self.net.train(training)
        return figures

    def tables(self) -> dict[str, tuple[list[str], list[list[Any]]]]:
        """True class, answer and its probability of the images judged last."""
        if not self._seen or self.facts is None:
            return {}
        classes = self.facts["classes"]
        shares, true = (torch.cat(part) for part in zip(*self._seen, strict=True))
        sure, said = shares.max(1)
        rows = zip(true.tolist(), said.tolist(), sure.tolist(), strict=True)
        return {"held_out": (["true", "predicted", "probability"], [[classes[t], classes[s], p] for t, s, p in rows])}
