"""A run that stops anywhere and goes on ends with the same bits as one that never stopped."""

import functools

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torchvision.transforms import v2

from callbacks.scheduled_sampling import ScheduledSampling
from callbacks.warmup import WarmupScheduler
from datamodules.generated import write_covid, write_food, write_phonemes, write_speakers, write_translation
from datamodules.hw1_covid import CovidData
from datamodules.hw2_phoneme import PhonemeData
from datamodules.hw3_food import FoodData
from datamodules.hw4_speaker import SpeakerData
from datamodules.hw5_translation import TranslationData
from modules.hw1_covid import CovidRegressor
from modules.hw2_phoneme import PhonemeClassifier
from modules.hw3_food import FoodClassifier
from modules.hw4_speaker import SpeakerClassifier
from modules.hw5_translation import Translator
from modules.nets.frame_encoders import TransformerFrames
from modules.nets.margin import MarginSoftmax
from modules.nets.recurrent import Recurrent
from modules.nets.recurrent_seq2seq import RecurrentSeq2Seq
from modules.nets.resnet import ResNet
from modules.nets.seq2seq import TransformerSeq2Seq
from modules.nets.spec_augment import SpecAugment
from modules.nets.window_mlp import WindowMLP

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_covid(root / "hw1_covid")
    write_phonemes(root / "hw2_phoneme")
    write_food(root / "hw3_food")
    write_speakers(root / "hw4_speaker")
    write_translation(root / "hw5_translation")
    for side in ("en", "zh"):
        path = root / "hw5_translation" / f"raw.{side}"
        path.write_text("".join(path.read_text("utf-8").splitlines(keepends=True)[:150]), "utf-8")
    return root


def covid(root):
    """5 steps an epoch, the last one short."""
    data = CovidData(dir=str(root / "hw1_covid"), batch_size=500, members=2, target="change")
    optimizer = functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)
    return CovidRegressor(optimizer, [8], dropout=0.3, batch_norm=True, ridge=3.0, state_ridge=100.0), data


def food(root):
    """5 steps an epoch, with every kind of noise: augmentation, mixing, dropout, unlabelled images, two workers."""
    augment = [v2.RandomResizedCrop(16), v2.TrivialAugmentWide(), v2.RandomErasing()]
    data = FoodData(dir=str(root / "hw3_food"), image_size=20, batch_size=60, augment=augment, unlabelled=1, workers=2)
    net = functools.partial(ResNet, width=8, blocks=(1, 1), dropout=0.3)
    optimizer = functools.partial(torch.optim.AdamW, lr=0.01)
    return FoodClassifier(optimizer, net, 0.1, mixup=0.2, cutmix=1.0, pseudo_threshold=0.1), data


def utterances(root, net=None, **options):
    """5 steps an epoch of whole utterances, which SpecAugment and dropout change, in two networks."""
    data = PhonemeData(dir=str(root / "hw2_phoneme"), window=None, **({"batch_size": 2600} | options))
    net = net or functools.partial(TransformerFrames, d_model=8, d_ff=16, dropout=0.3)
    optimizer = functools.partial(torch.optim.AdamW, lr=0.01, weight_decay=0.1)
    return PhonemeClassifier(optimizer, net, members=2, dropout=0.3, augment=[SpecAugment()]), data


def recurrent(root):
    """2 steps an epoch: these networks go through an utterance frame by frame, which takes long."""
    return utterances(root, functools.partial(Recurrent, hidden=4, layers=2, dropout=0.3), folds=2, batch_size=4000)


def frames(root):
    """5 steps an epoch of windows, the last one short."""
    data = PhonemeData(dir=str(root / "hw2_phoneme"), window=3, batch_size=2300)
    net = functools.partial(WindowMLP, hidden=[16], batch_norm=True, dropout=0.3)
    return PhonemeClassifier(functools.partial(torch.optim.AdamW, lr=0.01), net, label_smoothing=0.1), data


def speakers(root):
    """4 steps an epoch, the last one short: random stretches with noise, SpecAugment, dropout, two networks."""
    data = SpeakerData(dir=str(root / "hw4_speaker"), segment=24, batch_size=50, train_snr=(0.0, 20.0))
    net = functools.partial(TransformerFrames, d_model=8, d_ff=16, dropout=0.3)
    head = functools.partial(MarginSoftmax, margin=0.1)
    optimizer = functools.partial(torch.optim.AdamW, lr=0.01)
    return SpeakerClassifier(
        optimizer, net, "attentive", head=head, members=2, dropout=0.3, augment=[SpecAugment()]
    ), data


def sentences(root, net=None, **options):
    """5 steps an epoch, made by two workers; more and more words are drawn from the network's own."""
    folder = str(root / "hw5_translation")
    data = TranslationData(dir=folder, vocabulary=600, folds=25, max_tokens=420, quick=1, workers=2)
    net = net or functools.partial(TransformerSeq2Seq, d_model=8, heads=2, d_ff=16, layers=1, dropout=0.3)
    optimizer = functools.partial(torch.optim.AdamW, lr=0.01)
    module = Translator(optimizer, net, **({"sampling": "passes", "own_words": "sampled"} | options))
    return module, data, ScheduledSampling("exponential", k=0.9)


def recurrent_sentences(root):
    """The same token by token."""
    return sentences(root, functools.partial(RecurrentSeq2Seq, width=8, hidden=8), sampling="steps", own_words="mixed")


def fit(make, root, where, ckpt=None):
    seed_everything(3)
    module, data, *own = make(root)
    callbacks = [
        *own,
        WarmupScheduler("cosine", warmup=4),
        EMAWeightAveraging(decay=0.9),
        ModelCheckpoint(where, filename="{step}", every_n_train_steps=1, save_top_k=-1, auto_insert_metric_name=False),
    ]
    trainer = Trainer(
        max_epochs=4, accelerator="cpu", logger=False, callbacks=callbacks, default_root_dir=where,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=ckpt)
    return module


# in the first epoch, at its end, later, close to the end
STOPS = [
    *((covid, stop) for stop in (1, 3, 5, 7, 10, 18)),
    *((food, stop) for stop in (3, 5, 17)),
    *((utterances, stop) for stop in (3, 5, 17)),
    (recurrent, 3),
    *((frames, stop) for stop in (5, 7)),
    *((speakers, stop) for stop in (3, 6)),
    *((sentences, stop) for stop in (3, 12)),
    (recurrent_sentences, 7),
]


@pytest.fixture(scope="module")
def whole(root, tmp_path_factory):
    """From what to train to the module that was trained without a stop, and its checkpoints of every step."""

    @functools.cache
    def trained(make):
        where = tmp_path_factory.mktemp(make.__name__)
        return fit(make, root, where), where

    return trained


@pytest.mark.parametrize(("make", "stop"), STOPS)
def test_resumed_run_ends_with_the_same_bits(root, whole, tmp_path, make, stop):
    """From the checkpoint of any step: a kill after it leaves that one (tests/scripts/test_interrupted_run.py)."""
    module, where = whole(make)
    resumed = fit(make, root, tmp_path, ckpt=where / f"{stop}.ckpt")
    for (name, a), b in zip(module.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
