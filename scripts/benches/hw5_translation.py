"""HW5: our training step and beam search against torch.nn.Transformer in a plain loop; levels and ways to decode."""

import contextlib
import io
import math
import tempfile
import time
import warnings
from argparse import Action, ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from datamodules.errors import DataError
from datamodules.files.places import PROJECT
from datamodules.hw5_translation import TranslationData
from modules.hw5_parallel import MaskedTranslator, OneShotTranslator, ParallelTranslator
from modules.hw5_translation import Translator
from modules.nets.positions import SinusoidalPositions
from modules.nets.seq2seq import Seq2Seq, TransformerSeq2Seq
from modules.translation.parallel_search import repeated_share
from modules.translation.scores import CorpusScore
from modules.translation.search import beam_search
from scripts.benches.budget import Sample
from scripts.benches.tools import empty_cache, medians
from scripts.cli.summary import collect
from scripts.run.checkpoint import from_config, load_translator
from scripts.run.folder import RunFolder
from scripts.train import run_cli

CONFIGS = PROJECT / "configs" / "hw5_translation"
SIZES: dict[str, Any] = {"d_model": 256, "heads": 4, "d_ff": 1024, "layers": 3}  # of tiny.yaml
BETAS, DECAY, SMOOTHING, CLIP = (0.9, 0.98), 1e-4, 0.1, 1.0
STEPS = 6  # that are timed together
SEARCHED = 64  # sentences that are translated
BEAM = 5

Batch = dict[str, Tensor]


# the reference


class PlainTransformer(nn.Module):
    """torch.nn.Transformer of the same size, with the same one table for source, target and output."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        d = SIZES["d_model"]
        self.table = nn.Embedding(vocabulary, d, padding_idx=0)
        self.positions = SinusoidalPositions()
        self.dropout = nn.Dropout(0.1)
        self.net = nn.Transformer(
            d, SIZES["heads"], SIZES["layers"], SIZES["layers"], SIZES["d_ff"], 0.1, batch_first=True, norm_first=True
        )

    def _vectors(self, tokens: Tensor) -> Tensor:
        return self.dropout(self.positions(self.table(tokens) * math.sqrt(SIZES["d_model"])))

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """(B, S), (B, T) -> (B, T, V)."""
        causal = nn.Transformer.generate_square_subsequent_mask(target.shape[1]).to(target.device) < 0
        hidden = self.net(
            self._vectors(source), self._vectors(target), tgt_mask=causal, src_key_padding_mask=source == 0,
            tgt_key_padding_mask=target == 0, memory_key_padding_mask=source == 0, tgt_is_causal=True,
        )  # fmt: skip
        return F.linear(hidden, self.table.weight)


def plain_steps(batches: Sequence[Batch], vocabulary: int, bos: int, bf16: bool = False) -> Callable[[], float]:
    """A plain loop over the batches; each call gives the seconds of one round."""
    net = PlainTransformer(vocabulary)
    loss = nn.CrossEntropyLoss(ignore_index=0, label_smoothing=SMOOTHING)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, betas=BETAS, weight_decay=DECAY)

    def round_() -> float:
        start = time.perf_counter()
        for batch in batches:
            target = batch["target"]
            before = torch.cat([torch.full_like(target[:, :1], bos), target[:, :-1]], 1)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                scores = net(batch["source"], before)
                value = loss(scores.flatten(0, 1), target.flatten())
            optimizer.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(net.parameters(), CLIP)
            optimizer.step()
        return time.perf_counter() - start

    return round_


def tokens(batches: Sequence[Batch]) -> int:
    """Source and target tokens without padding."""
    return sum(int((batch[side] != 0).sum()) for batch in batches for side in ("source", "target"))


def padding(batches: Sequence[Batch]) -> float:
    """Share of the cells that hold none."""
    return 1 - tokens(batches) / sum(batch[side].numel() for batch in batches for side in ("source", "target"))


def shuffled(data: TranslationData, batches: Sequence[Batch]) -> list[Batch]:
    """The same number of tokens in batches of sentences as they come, in any order, padded to the longest."""
    rows = torch.from_numpy(np.random.default_rng(0).permutation(data.train_rows()))
    lengths = torch.from_numpy(data._lengths().sum(1))[rows].cumsum(0)
    ends = torch.searchsorted(lengths, torch.tensor([tokens(batches[: n + 1]) for n in range(len(batches))])) + 1
    pairs = data._data(data.corpus)
    return [pairs[rows[a:b]] for a, b in zip([0, *ends.tolist()], ends.tolist(), strict=False)]


def sample(data: TranslationData, module: Translator) -> Sample:
    """The course's loop: batches by length and tokens, as fairseq makes them; a constant rate, as in 2022 and 2023."""
    return Sample(data.train_dataloader(), lambda batch: module._losses(batch, module.label_smoothing)[0].mean())


# ours


class Clock(Callback):
    """When each training step began."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Note when the step begins, after the device has finished the one before."""
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        self.starts.append(time.perf_counter())


def translator() -> Translator:
    """The module of tiny.yaml."""
    optimizer = partial(torch.optim.AdamW, lr=1e-4, betas=BETAS, weight_decay=DECAY)
    return Translator(optimizer, partial(TransformerSeq2Seq, **SIZES, norm="pre"), label_smoothing=SMOOTHING)


class Fixed(TranslationData):
    """The data with some chosen batches for an epoch."""

    batches: Sequence[Batch] = ()

    def train_dataloader(self) -> Any:
        """A loader of the chosen batches, in their order."""
        return DataLoader(self.batches, batch_size=None)  # type: ignore[arg-type]


def new_trainer(device: str = "cpu", **options: Any) -> Trainer:
    """A Trainer that only trains and judges."""
    return Trainer(
        max_epochs=2, accelerator=device, devices=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        gradient_clip_val=CLIP, **options,
    )  # fmt: skip


def trainer_steps(data: Fixed, batches: Sequence[Batch], device: str = "cpu", **options: Any) -> float:
    """Seconds of a round over the batches by our module and Trainer, after one to warm up."""
    clock = Clock()
    data.batches = batches
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        new_trainer(device, callbacks=[clock], limit_val_batches=0, **options).fit(translator(), data)
    return float(np.mean(np.diff(clock.starts[len(batches) :]))) * len(batches)


def opened(root: Path | None, place: Path, **options: Any) -> Fixed:
    """The real corpus, else a generated one."""
    try:
        data = Fixed(root=str(root) if root else None, **options)
        data.locate()
        print(f"data: {data.locate()}")
    except DataError:
        TranslationData.sample(place / "small")
        data = Fixed(dir=str(place / "small"), **options)
        print("data: generated, as there is none")
    data.setup("fit")
    return data


def training(data: Fixed, repeats: int) -> None:
    """Print tokens/s of the plain loop and ours."""
    batches = [batch for batch, _ in zip(TranslationData.train_dataloader(data), range(STEPS), strict=False)]
    plain = shuffled(data, batches)
    assert data.facts is not None
    vocabulary, bos = data.facts["vocabulary"], data.facts["bos"]
    parts: dict[str, tuple[Sequence[Batch], Callable[[], float]]] = {
        "plain loop, sentences in any order": (plain, plain_steps(plain, vocabulary, bos)),
        "plain loop, our batches": (batches, plain_steps(batches, vocabulary, bos)),
        "ours, Trainer": (batches, lambda: trainer_steps(data, batches)),
    }
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():  # else it would be imitated
        parts |= {
            "plain loop, any order, bf16": (plain, plain_steps(plain, vocabulary, bos, bf16=True)),
            "ours, Trainer, bf16": (batches, lambda: trainer_steps(data, batches, precision="bf16-mixed")),
        }
    times: dict[str, list[float]] = {name: [] for name in parts}
    for turn in range(repeats + 1):
        for name, (_, part) in parts.items():
            seconds = part()
            if turn:  # the first warms up
                times[name].append(seconds)
    rates = {name: tokens(parts[name][0]) / median(values) for name, values in times.items()}
    first = next(iter(rates.values()))
    print(
        f"\nTraining, size of tiny ({sum(p.numel() for p in PlainTransformer(vocabulary).parameters()):,} parameters), "
        f"max_tokens {data.max_tokens}, {tokens(batches) / len(batches):,.0f} tokens a batch: medians of {repeats} "
        f"turns of {len(batches)} steps; tokens are source and target, without padding"
    )
    print(f"  {'':<36} {'tokens/s':>9} {'padding':>8} {'against the first':>18}")
    for name, rate in rates.items():
        print(f"  {name:<36} {rate:9,.0f} {padding(parts[name][0]):7.1%} {rate / first:16.2f} x")
    module = translator()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        start = time.perf_counter()
        new_trainer().validate(module, data, verbose=False)
    seconds = time.perf_counter() - start
    epoch = data.corpus.lengths[data.train_rows()].sum() / rates["ours, Trainer"]
    print(
        f"  a validation takes {seconds:.1f} s (random weights, outputs up to the limit), an epoch of training "
        f"{epoch:,.0f} s: {seconds / (seconds + epoch):.1%} of a run that validates once an epoch"
    )


@contextlib.contextmanager
def judging(module: Translator) -> Iterator[None]:
    """Without dropout and gradients."""
    training = module.training
    module.eval()
    with torch.no_grad():
        yield
    module.train(training)


def searching(data: Fixed, repeats: int) -> None:
    """Print sentences/s of the beam search with and without cache, by random weights."""
    module = translator()
    assert data.facts is not None
    torch.manual_seed(0)
    module.expect(data.facts)
    module.configure_model()
    rows = torch.from_numpy(data.chosen_folds()[0].val[:SEARCHED])
    source = data._data(data.corpus)[rows]["source"]
    found: dict[bool, Any] = {}

    def search(cached: bool) -> None:
        found[cached] = beam_search([module.net], source, source != 0, module.ends, BEAM, cached=cached)

    parts: dict[str, Callable[[], None]] = {
        "with cache": partial(search, True),
        "without cache": partial(search, False),
    }
    with judging(module):
        rates = {name: len(rows) / seconds for name, seconds in medians(parts, repeats).items()}
    assert [h[0].tokens for h in found[True]] == [h[0].tokens for h in found[False]], "the searches differ"
    print(
        f"\nBeam {BEAM}, {len(rows)} held-out sentences at once, random weights, outputs up to the limit: medians of "
        f"{repeats}"
    )
    for name, rate in rates.items():
        print(f"  {name:<36} {rate:9,.1f} sentences/s {rate / rates['without cache']:12.1f} x")


def on_gpu(data: Fixed, repeats: int) -> None:
    """Print tokens/s of our Trainer on a GPU."""
    batches = [batch for batch, _ in zip(TranslationData.train_dataloader(data), range(50), strict=False)]
    print(f"\nOn the GPU: size of tiny, max_tokens {data.max_tokens}, {len(batches)} steps")
    for name, options in {"fp32": {}, "bf16": {"precision": "bf16-mixed"}}.items():
        seconds = median(trainer_steps(data, batches, "gpu", **options) for _ in range(repeats))
        print(f"  {name:<36} {tokens(batches) / seconds:9,.0f} tokens/s")


def speed(root: Path | None, repeats: int) -> None:
    """Print the speed of training and of the beam search."""
    with empty_cache(), tempfile.TemporaryDirectory() as name:
        data = opened(root, Path(name), max_tokens=4096)
        training(data, repeats)
        searching(data, repeats)
        if torch.cuda.is_available():
            on_gpu(data, repeats)


# accuracy


def judged(level: str, root: Path | None, *more: str) -> tuple[dict[str, float], float]:
    """Test scores of a level and the minutes of its fit: by the command line, as a user would."""
    place = ["--data.root", str(root)] if root else []
    quiet = contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO())
    with tempfile.TemporaryDirectory() as name, quiet[0], quiet[1]:
        run = ["--run_dir", str(Path(name, "run"))]
        start = time.perf_counter()
        run_cli(["fit", "--config", str(CONFIGS / f"{level}.yaml"), *run, *place, *more])
        minutes = (time.perf_counter() - start) / 60
        return collect("test", run_cli(["test", *run, *place]).trainer), minutes


def accuracy(root: Path | None, levels: list[str]) -> None:
    """Print BLEU and chrF of levels, fitted as their configs say, on the pairs held out."""
    with empty_cache():
        print(f"\nAccuracy on held-out pairs (they choose the checkpoint), beam {BEAM}")
        print(f"  {'':<22} {'BLEU':>6} {'chrF':>6} {'loss':>6} {'minutes':>8}")
        for level in levels:
            found, minutes = judged(level, root)
            cells = " ".join(f"{found[f'test/{key}']:6.2f}" for key in ("bleu", "chrf", "loss"))
            print(f"  {level:<22} {cells} {minutes:8.1f}", flush=True)


# ways to decode

ALONE = 100  # sentences translated one by one

Way = tuple[str, Callable[[Tensor], list[str]]]


def masked_name(iterations: int, lengths: int) -> str:
    """Such as 4 iterations, 1 length."""
    return f"{iterations} iteration{'s' * (iterations > 1)}, {lengths} length{'s' * (lengths > 1)}"


def ways(model: Translator, judge: Seq2Seq | None) -> Iterator[Way]:
    """How a trained model can decode; a network that goes token by token may judge the candidates of mask-predict."""
    if not isinstance(model, ParallelTranslator):
        for beam in (BEAM, 1):
            yield f"beam {beam}" if beam > 1 else "greedy", partial(model.translate, beam=beam)
    elif isinstance(model, MaskedTranslator):

        def masked(iterations: int, lengths: int, rescorer: Seq2Seq | None, source: Tensor) -> list[str]:
            model.iterations, model.rescorer = iterations, rescorer
            return model.translate(source, lengths)

        most, several = 1 if isinstance(model, OneShotTranslator) else 10, model.candidates
        plans = [(1, 1), (4, 1), (10, 1), (most, several)] if most > 1 else [(1, 1), (1, several)]
        for iterations, lengths in plans:
            yield masked_name(iterations, lengths), partial(masked, iterations, lengths, None)
        if judge is not None:
            yield f"{masked_name(most, several)}, judged token by token", partial(masked, most, several, judge)
    else:
        yield "all at once", model.translate


class _Decoding(Action):
    """--decoding RUN ...: that part alone, of these runs."""

    def __call__(self, parser: ArgumentParser, namespace: Namespace, values: Any, option: str | None = None) -> None:
        namespace.only, namespace.runs = "decoding", values


def add_flags(parser: ArgumentParser) -> None:
    """Trained runs to be compared."""
    parser.add_argument(
        "--decoding", nargs="+", type=Path, metavar="RUN", action=_Decoding,
        help="instead: score and speed of trained translators",
    )  # fmt: skip
    parser.add_argument("--trust", action="store_true", help="allow those runs to use classes that leeml does not know")


def decoding(root: Path | None, runs: Sequence[Path], repeats: int, trust: bool = False) -> None:
    """Print BLEU, chrF, repeated words and sentences/s of trained runs on the pairs held out; words are characters in
    Chinese.

    Args:
        root: Data folder.
        runs: Folders of runs on the same pairs; the first that goes token by token judges the candidates of others.
        repeats: Timed turns.
        trust: Whether the runs may use classes that leeml does not know.
    """
    paths = [RunFolder(run).checkpoint("best") for run in runs]
    models = {str(run): load_translator(path, trust=trust) for run, path in zip(runs, paths, strict=True)}
    facts = [model.facts for model in models.values()]
    for named, other in zip(runs, facts, strict=True):
        if other["target"] != facts[0]["target"]:
            ways_there = f"{named} translates to {other['target']}, {runs[0]} to {facts[0]['target']}"
            raise DataError(f"{ways_there}: name runs of one direction")
        if not torch.equal(other["tokenizer"], facts[0]["tokenizer"]):
            raise DataError(
                f"{named} has another tokenizer than {runs[0]}: compare runs on the same pairs, fold and vocabulary"
            )
    one_by_one = (model.net for model in models.values() if not isinstance(model, ParallelTranslator))
    judge = next(one_by_one, None)
    place = [f"--data.root={root}", "--data.dir=null"] if root else []
    data: TranslationData = from_config(paths[0], place, "data", trust=trust).data
    data.expect(facts[0])
    data.setup("validate")
    batches = list(data.val_dataloader())
    alone = [batch["source"][row : row + 1] for batch in batches for row in range(len(batch["source"]))][:ALONE]
    alone = [source[:, : int((source != 0).sum())] for source in alone]
    references = [text for batch in batches for text in batch["reference"]]

    def words(line: str) -> list[str]:
        return list(line.replace(" ", "")) if data.target == "zh" else line.split()

    print(
        f"\nDecoding, {len(references)} held-out pairs, which chose the checkpoints: sentences/s at once and one "
        f"by one (the first {len(alone)}); medians of {repeats}"
    )
    print(f"  {'':<44} {'BLEU':>6} {'chrF':>6} {'repeated':>9} {'at once':>8} {'one by one':>11}")
    print(f"  {'reference':<44} {'':>13} {repeated_share(map(words, references)):9.1%}")
    for run, model in models.items():
        for name, translate in ways(model, judge):
            said: list[str] = []

            def everything(translate: Callable[[Tensor], list[str]] = translate, said: list[str] = said) -> None:
                said[:] = [text for batch in batches for text in translate(batch["source"])]

            def each(translate: Callable[[Tensor], list[str]] = translate) -> None:
                for source in alone:
                    translate(source)

            seconds = medians({"all": everything, "each": each}, repeats)
            scores = [CorpusScore(kind, data.target) for kind in ("bleu", "chrf")]
            for score in scores:
                score.update(said, references)
            print(
                f"  {f'{run}, {name}':<44} {float(scores[0].compute()):6.2f} {float(scores[1].compute()):6.2f} "
                f"{repeated_share(map(words, said)):9.1%} "
                f"{len(references) / seconds['all']:8.1f} {len(alone) / seconds['each']:11.1f}",
                flush=True,
            )
