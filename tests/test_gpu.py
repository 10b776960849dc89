"""Training on a pretended GPU (tests/pretended_gpu.py): devices and types that fit, waits and launches of a step.

Every kind of module is fitted for two steps, validated, tested, and asked for predictions, on generated data with small
nets. LAUNCHES is the budget: kernels of the second training step, optimizer included. A wait in a training step is a
fault; validation may wait where the figures collect answers.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor
from torchvision.transforms import v2

from callbacks.scheduled_sampling import ScheduledSampling
from datamodules.hw1_covid import CovidData
from datamodules.hw2_phoneme import PhonemeData
from datamodules.hw3_food import FoodData
from datamodules.hw4_speaker import SpeakerData
from datamodules.hw5_translation import TranslationData
from modules.base import HomeworkModule
from modules.hw1_covid import CovidRegressor
from modules.hw2_phoneme import PhonemeClassifier
from modules.hw3_food import FoodClassifier
from modules.hw4_speaker import SpeakerClassifier
from modules.hw5_parallel import CTCTranslator, LongOutputTranslator, MaskedTranslator, OneShotTranslator
from modules.hw5_translation import Translator
from modules.nets.cnn import CNN
from modules.nets.frame_encoders import ConformerFrames, TransformerFrames
from modules.nets.margin import MarginSoftmax
from modules.nets.recurrent import Recurrent
from modules.nets.recurrent_seq2seq import RecurrentSeq2Seq
from modules.nets.resnet import ResNet
from modules.nets.seq2seq import TransformerSeq2Seq
from modules.nets.spec_augment import SpecAugment
from modules.nets.vocal_tract import VocalTract
from modules.objectives import MinimumRisk, PolicyGradient
from modules.translation.search import Ends, Hypothesis, beam_search, greedy
from tests.pretended_gpu import CUDA, DeviceTensor, PretendedGPU

ADAM = functools.partial(torch.optim.AdamW, lr=1e-3, fused=True)
SMALL = {"d_model": 16, "heads": 2, "d_ff": 16}
CONFORMER = functools.partial(ConformerFrames, **SMALL, layers=2, kernel=3, relative=False)
SEQ2SEQ = functools.partial(TransformerSeq2Seq, **SMALL, layers=2)
GRU = functools.partial(RecurrentSeq2Seq, width=8, hidden=8)
PARALLEL = functools.partial(SEQ2SEQ, causal=False)


@dataclass
class Case:
    """A module, the options of its homework's data, the budget of launches, and callbacks."""

    module: Callable[[], HomeworkModule]
    launches: int
    data: dict[str, Any] = field(default_factory=dict)
    callbacks: tuple[Callable[[], Callback], ...] = ()
    waits: int = 0
    """In a training step."""


def _phonemes(**options: Any) -> Callable[[], HomeworkModule]:
    return functools.partial(PhonemeClassifier, ADAM, **options)


def _speakers(**options: Any) -> Callable[[], HomeworkModule]:
    return functools.partial(SpeakerClassifier, ADAM, **options)


PACKED = 3
"""Waits of a recurrent layer over padded sequences: torch packs and unpacks them by lengths on the host."""
DRAWN = {"max_length": 30}
"""Short sentences: a step of an output that is drawn has as many launches as any other."""
WHOLE = {"window": None, "batch_size": 600}
CASES = {
    "hw1": Case(lambda: CovidRegressor(ADAM, hidden=[8, 8], dropout=0.1), 76, {"members": 4}),
    "hw1_boss": Case(
        lambda: CovidRegressor(ADAM, hidden=[8, 8], ridge=3.0, state_ridge=250.0),
        85,
        {"features": "differences", "target": "change", "members": 2},
    ),
    "hw2_windows": Case(_phonemes(), 63, {"window": 5, "batch_size": 64}),
    "hw2_lstm": Case(_phonemes(net=functools.partial(Recurrent, hidden=8, layers=2)), 79, WHOLE, waits=PACKED),
    "hw2_conformer": Case(
        _phonemes(net=CONFORMER, members=2, augment=[VocalTract(), SpecAugment()], smoothing=0.5, vtln=3), 670, WHOLE
    ),
    "hw2_transformer": Case(_phonemes(net=functools.partial(TransformerFrames, **SMALL)), 105, WHOLE),
    "hw3_cnn": Case(
        lambda: FoodClassifier(ADAM, functools.partial(CNN, channels=(4, 8), hidden=(8,)), pseudo_threshold=0.0),
        143,
        {"unlabelled": 1},
    ),
    "hw3_resnet": Case(
        lambda: FoodClassifier(ADAM, functools.partial(ResNet, blocks=(1, 1), width=4), 0.1, mixup=0.2, cutmix=1.0),
        158,
        {"tta": 2, "augment": [v2.RandomResizedCrop(32), v2.RandomHorizontalFlip()]},
        (lambda: EMAWeightAveraging(decay=0.9),),
    ),
    "hw4_conformer": Case(
        _speakers(
            net=functools.partial(CONFORMER, stride=2),
            pooling="attentive",
            members=2,
            augment=[SpecAugment()],
            head=functools.partial(MarginSoftmax, kind="angular"),
            normalise=True,
        ),
        600,
        {"train_snr": (0.0, 60.0)},
    ),
    "hw4_transformer": Case(_speakers(hidden=8, pooling="statistics"), 125),
    "hw5_gru": Case(
        lambda: Translator(ADAM, functools.partial(RecurrentSeq2Seq, width=8, hidden=8, layers=2)), 235, waits=PACKED
    ),
    "hw5_transformer": Case(lambda: Translator(ADAM, functools.partial(SEQ2SEQ, norm="pre", routing="mix")), 365),
    "hw5_sampling_in_passes": Case(
        lambda: Translator(ADAM, SEQ2SEQ, own_words="mixed"),
        850,
        {},
        (lambda: ScheduledSampling("constant", floor=0.5),),
    ),
    "hw5_self_critical": Case(lambda: Translator(ADAM, SEQ2SEQ, objective=PolicyGradient(2)), 9500, DRAWN, waits=60),
    # what an untrained net draws has other lengths on another CPU: the budgets of both objectives leave a tenth for it
    "hw5_minimum_risk": Case(lambda: Translator(ADAM, GRU, objective=MinimumRisk(2)), 2800, DRAWN, waits=45),
    "hw5_masked": Case(lambda: MaskedTranslator(ADAM, PARALLEL), 390),
    "hw5_one_shot": Case(lambda: OneShotTranslator(ADAM, PARALLEL, glance=0.5), 730, waits=2),
    "hw5_long_output": Case(lambda: LongOutputTranslator(ADAM, PARALLEL), 540),
    "hw5_ctc": Case(lambda: CTCTranslator(ADAM, PARALLEL, glance=0.5), 1700),
}

DATA: dict[str, tuple[type, dict[str, Any]]] = {
    "hw1": (CovidData, {"batch_size": 64}),
    "hw2": (PhonemeData, {"folds": 4}),
    "hw3": (FoodData, {"image_size": 32, "batch_size": 8, "workers": 0}),
    "hw4": (SpeakerData, {"segment": 40, "batch_size": 8, "workers": 0}),
    "hw5": (TranslationData, {"vocabulary": 400, "max_tokens": 240, "max_length": 60, "quick": 4, "workers": 0}),
}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The generated data of a homework, written when it is asked for."""
    root = tmp_path_factory.mktemp("gpu")

    @functools.cache
    def folder(homework: str) -> Path:
        path = root / homework / "sample"
        DATA[homework][0].sample(path)  # type: ignore[attr-defined]
        if homework == "hw5":  # tokenizer and search need no more
            for side in ("en", "zh"):
                for part, count in (("raw", 400), ("test", 12)):
                    file = path / f"{part}.{side}"
                    file.write_text("".join(file.read_text("utf-8").splitlines(True)[:count]), "utf-8")
        return path

    return folder


@pytest.fixture
def gpu() -> Iterator[PretendedGPU]:
    with PretendedGPU() as device:
        yield device


class Losses(Callback):
    """Keeps the losses of training."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        loss = outputs["loss"]
        self.losses.append((loss.held if isinstance(loss, DeviceTensor) else loss).float())


class Phases(Losses):
    """Tells the device what the trainer is at: the second training step is recorded as "step"."""

    def __init__(self, gpu: PretendedGPU) -> None:
        super().__init__()
        self.gpu = gpu

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, index: int) -> None:
        self.gpu.phase = "step" if index else "first step"
        tensors = [v for v in batch.values() if isinstance(v, Tensor)]
        assert all(isinstance(t, DeviceTensor) for t in tensors)

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, index: int) -> None:
        self.gpu.phase = "between" if index else "loading"  # of the second batch
        super().on_train_batch_end(trainer, module, outputs, batch, index)

    def on_validation_batch_start(self, *_: Any) -> None:
        self.gpu.phase = "validation"

    def on_validation_batch_end(self, *_: Any) -> None:
        self.gpu.phase = "between"


def trained(
    watch: Losses, folders: Callable[[str], Path], name: str, case: Case, precision: Any
) -> tuple[Trainer, HomeworkModule, LightningDataModule]:
    """Two steps and a validation batch."""
    homework = name[:3]
    kind, options = DATA[homework]
    data = kind(dir=str(folders(homework)), **options | case.data)
    torch.manual_seed(0)
    trainer = Trainer(
        accelerator="gpu", devices=1, precision=precision, max_steps=2, limit_val_batches=1, limit_test_batches=1,
        limit_predict_batches=1, num_sanity_val_steps=0, log_every_n_steps=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        limit_train_batches=2, gradient_clip_val=1.0,
        callbacks=[watch, *(new() for new in case.callbacks)],
    )  # fmt: skip
    module = case.module()
    trainer.fit(module, datamodule=data)
    assert len(watch.losses) == 2
    assert all(torch.isfinite(loss) for loss in watch.losses)
    return trainer, module, data


@pytest.mark.parametrize("name", CASES)
def test_trains_and_judges(gpu: PretendedGPU, folders: Callable[[str], Path], name: str) -> None:
    """In bf16-mixed: no fault anywhere, no wait in a step of training, launches within the budget."""
    case = CASES[name]
    trainer, module, data = trained(Phases(gpu), folders, name, case, "bf16-mixed")
    trainer.test(module, datamodule=data, verbose=False)
    gpu.phase = "predict"
    assert trainer.predict(module, datamodule=data)
    assert not gpu.faults
    waits = gpu.waits["step"]
    assert waits.total() <= case.waits, waits
    assert not (ours := [place for place in gpu.waits["loading"] if "tests/" not in place]), ours
    assert gpu.launches["step"].total() <= case.launches, gpu.launches["step"].total()


@pytest.mark.parametrize("name", ["hw2_lstm", "hw3_resnet", "hw4_conformer", "hw5_gru", "hw5_ctc"])
def test_trains_in_float16(gpu: PretendedGPU, folders: Callable[[str], Path], name: str) -> None:
    """For cards without bfloat16: the loss is scaled, and nothing runs in a wrong type."""
    trained(Phases(gpu), folders, name, CASES[name], "16-mixed")
    assert not gpu.faults


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("name", CASES)
def test_real_gpu_trains_and_judges(folders: Callable[[str], Path], name: str, precision: str) -> None:
    trainer, module, data = trained(Losses(), folders, name, CASES[name], precision)
    trainer.test(module, datamodule=data, verbose=False)
    assert trainer.predict(module, datamodule=data)


NETS = {"transformer": functools.partial(SEQ2SEQ, 50), "gru": functools.partial(GRU, 50)}


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("beam", [1, 3])
def test_decoding_waits_once_in_four_steps(gpu: PretendedGPU, net: str, beam: int) -> None:
    """Beside the waits before the first step and after the last one, and finds what the CPU finds."""
    torch.manual_seed(0)
    model, source = NETS[net]().eval(), torch.randint(4, 50, (3, 30))
    ends, steps = Ends(0, 2, 3), int(1.2 * 30 + 10) + 1

    def search(source: Tensor) -> list[list[Hypothesis]]:
        if beam == 1:
            return greedy([model], source, None, ends)
        return beam_search([model], source, None, ends, beam)

    expected = search(source)
    model.to(CUDA)
    on_device = source.to(CUDA, non_blocking=True)
    gpu.phase = "decoding"
    found = search(on_device)
    assert [h.tokens for group in found for h in group] == [h.tokens for group in expected for h in group]
    assert not gpu.faults
    assert 0 < gpu.waits["decoding"].total() <= steps / 4 + 6, gpu.waits["decoding"]
