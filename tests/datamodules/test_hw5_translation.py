"""datamodules/hw5_translation.py: the course's files in, batches of pairs out, nothing held out leaks."""

import gzip
import io
import math
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sacrebleu
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from datamodules import hw5_translation
from datamodules.errors import DataError
from datamodules.hw5_translation import TranslationData
from datamodules.text.cleaning import clean_en, clean_zh
from datamodules.text.tokenizer import EOS, PAD, Tokenizer
from scripts.leeml import main


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "hw5_translation" / "sample"
    TranslationData.sample(folder)
    return folder


def new(folder: Path, **options: Any) -> TranslationData:
    return TranslationData(**({"dir": str(folder), "vocabulary": 600, "folds": 10} | options))


def ready(folder: Path, stage: str = "fit", **options: Any) -> TranslationData:
    data = new(folder, **options)
    data.setup(stage)
    return data


class Run:
    """Stands for a trainer."""

    lightning_module = None

    def __init__(self, rank: int, world: int) -> None:
        self.global_rank, self.world_size = rank, world
        self._accelerator_connector = type("Connector", (), {"use_distributed_sampler": False})()
        self.strategy = type("Strategy", (), {"root_device": torch.device("cpu")})()


def of_a_run(data: TranslationData, facts: dict[str, Any] | None = None, rank: int = 0, world: int = 1) -> Any:
    data.trainer = Run(rank, world)  # type: ignore[assignment]
    if facts is not None:
        data.expect(facts)
    return data


def lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines()


def pairs_of(data: TranslationData, rows: Any) -> set[tuple[str, str]]:
    """English and Chinese of rows, as decoded."""
    numbers = rows.tolist()
    sides = [data.tokenizer.decode([data.corpus.ids(row, side) for row in numbers]) for side in (0, 1)]
    return set(zip(*sides, strict=True))


def write(folder: Path, name: str, *pairs: tuple[str, str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(f"{en}\t{zh}\n" for en, zh in [("en", "zh"), *pairs]), encoding="utf-8")


def made_up(count: int, first: int = 0) -> list[tuple[str, str]]:
    return [(f"number {n} and {n * 7}", f"第{n}號和{n * 7}") for n in range(first, first + count)]


# files


class TestFiles:
    def test_sample(self, sample: Path, tmp_path: Path) -> None:
        assert sorted(path.name for path in sample.iterdir()) == ["raw.en", "raw.zh", "test.en", "test.zh"]
        assert [len(lines(sample / f"{part}.{side}")) for part in ("raw", "test") for side in ("en", "zh")] == [
            3000, 3000, 200, 200,
        ]  # fmt: skip
        assert not set(lines(sample / "raw.en")) & set(lines(sample / "test.en"))
        TranslationData.sample(tmp_path / "again")
        assert (tmp_path / "again" / "raw.zh").read_bytes() == (sample / "raw.zh").read_bytes()
        TranslationData.sample(tmp_path / "other", seed=1)
        assert (tmp_path / "other" / "raw.zh").read_bytes() != (sample / "raw.zh").read_bytes()
        with pytest.raises(DataError, match="there already; move it away"):
            TranslationData.sample(sample)

    @pytest.mark.parametrize("end", ["", ".gz"])
    @pytest.mark.parametrize(("train", "test"), [("raw", "test"), ("train_dev.raw", "test.raw"), ("raw", "test/test")])
    def test_layouts(self, sample: Path, tmp_path: Path, train: str, test: str, end: str) -> None:
        for old, name in {"raw": train, "test": test}.items():
            for side in ("en", "zh"):
                content = (sample / f"{old}.{side}").read_bytes()
                path = tmp_path / f"{name}.{side}{end}"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(gzip.compress(content) if end else content)
        assert TranslationData.has_files(tmp_path)
        data = ready(tmp_path)
        data.setup("test")
        assert data.scored_test
        assert len(data.test_corpus) == 200
        assert data.describe_test() == f"200 test sentences whose translations are known ({data.test_bitext})"
        here = ready(sample)
        assert pairs_of(data, data.train_rows()) == pairs_of(here, here.train_rows())

    def test_editions(self, sample: Path, tmp_path: Path) -> None:
        for edition in ("2021", "2023"):
            shutil.copytree(sample, tmp_path / "hw5_translation" / edition)
        with pytest.raises(DataError, match=r"several editions here: 2021, 2023\. Choose one, e\.g\. --data\.edition"):
            TranslationData(root=str(tmp_path)).locate()
        assert TranslationData(root=str(tmp_path), edition=2023).locate().name == "2023"
        assert not TranslationData.has_files(tmp_path)

    def test_pairs_of_ones_own(self, tmp_path: Path) -> None:
        write(tmp_path, "a.tsv", *made_up(30))
        write(tmp_path, "b.tsv", *made_up(20, 30))
        assert TranslationData.has_files(tmp_path)
        data = ready(tmp_path, pairs=["a.tsv", str(tmp_path / "b.tsv")], folds=5)
        train, val = data.chosen_folds()[0]
        assert pairs_of(data, train) | pairs_of(data, val) == {(clean_en(en), clean_zh(zh)) for en, zh in made_up(50)}
        with pytest.raises(
            DataError, match=r"no train_dev\.raw\.en or raw\.en to train on .* \(there are a\.tsv, b\.ts"
        ):
            ready(tmp_path)
        with pytest.raises(
            DataError, match=r"c\.tsv: there is no such file \(data\.pairs\); expected a table that end"
        ):
            ready(tmp_path, pairs=["c.tsv"])

    def test_one_side_is_missing(self, sample: Path, tmp_path: Path) -> None:
        shutil.copy(sample / "raw.en", tmp_path)
        with pytest.raises(DataError, match=r"raw: only .*raw\.en is there \(data\.pairs\)"):
            ready(tmp_path)

    def test_dropped_pairs_are_counted(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        odd = [("", "空"), ("some", ""), ("one", "一" * 10), ("a " * 1001, "一" * 300), ("long " * 40, "長" * 40)]
        write(tmp_path, "a.tsv", *made_up(50), *odd)
        with caplog.at_level("INFO"):
            data = ready(tmp_path, pairs=["a.tsv"], max_length=35)
        assert (
            "left out of 55: 2 with an empty side, 1 too long to clean, 1 with one side 9 times as long (first: a.tsv, "
            "pair 51), 1 of more than data.max_length = 35 tokens"
        ) in caplog.text
        train, val = data.chosen_folds()[0]
        assert len(train) + len(val) == 50

    def test_no_pairs_left(self, tmp_path: Path) -> None:
        write(tmp_path, "a.tsv", ("", "空"), ("one", "一" * 10))
        with pytest.raises(
            DataError, match=r"a\.tsv: no pairs left of 2: 1 with an empty side, 0 too long .*, 1 with one"
        ):
            ready(tmp_path, pairs=["a.tsv"])
        write(tmp_path, "a.tsv", *made_up(3))
        with pytest.raises(DataError, match=r"3 pairs leave 0 to train on and 0 held out .*data\.max_length = 3\)"):
            ready(tmp_path, pairs=["a.tsv"], folds=2, max_length=3)

    def test_simplified_is_said(self, tmp_path: Path) -> None:
        write(tmp_path, "a.tsv", *((f"what {n}", f"这是第{n}个问题") for n in range(20)))
        with pytest.warns(UserWarning, match=r"a\.tsv: its Chinese is Simplified, the course's is Traditional"):
            ready(tmp_path, pairs=["a.tsv"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_length": 600, "max_tokens": 500}, r"max_length is 600, more than data\.max_tokens = 500"),
        ({"source": "zh"}, "both zh: expected en and zh, or zh and en"),
        ({"vocabulary": 100}, r"data\.vocabulary is 100: expected at least 300"),
        ({"workers": -1}, r"data\.workers is -1: expected at least 0"),
        ({"synthetic_ratio": 1.0}, r"synthetic_ratio is 1\.0: expected 0 or more, and data\.synthetic named"),
        ({"synthetic_only": True}, r"synthetic_only is true: expected data\.synthetic named, the pairs to train on"),
        (
            {"synthetic_only": True, "synthetic": "a.tsv", "synthetic_ratio": 1.0},
            r"synthetic_only is true: .*, and no data\.synthetic_ratio",
        ),
        ({"folds": 1}, r"data\.folds is 1"),
    ],
)
def test_bad_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        TranslationData(**options)


# rows


class TestSplit:
    def test_pairs_that_share_a_sentence_stay_together(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(0)
        pairs = [(f"word {rng.integers(200)}", f"字{rng.integers(200)}") for _ in range(220)]
        write(tmp_path, "a.tsv", *pairs)
        data = ready(tmp_path, pairs=["a.tsv"], folds=4)
        fold = data.folds_of_rows
        assert set(fold) == {0, 1, 2, 3}
        for a, one in zip(fold, pairs, strict=True):
            for b, other in zip(fold, pairs, strict=True):
                assert a == b or (one[0] != other[0] and one[1] != other[1])

    def test_folds_are_about_equal_and_whole(self, sample: Path) -> None:
        data = ready(sample)
        folds = data.split()
        assert sorted(np.concatenate([fold.val for fold in folds]).tolist()) == list(range(3000))
        assert all(len(np.intersect1d(*fold)) == 0 and sum(map(len, fold)) == 3000 for fold in folds)
        assert max(len(fold.val) for fold in folds) < 340
        chosen = new(sample, fold=3)
        chosen.setup("fit")
        assert np.array_equal(chosen.chosen_folds()[0].val, folds[3].val)
        assert chosen.facts is not None
        assert data.facts is not None
        assert chosen.facts["held_out"] != data.facts["held_out"]

    def test_the_tokenizer_never_saw_what_is_held_out(self, sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[np.ndarray] = []
        real = hw5_translation.trained_tokenizer

        def spy(pairs: Any, rows: np.ndarray, *rest: int) -> Tokenizer:
            seen.append(rows)
            return real(pairs, rows, *rest)

        monkeypatch.setattr(hw5_translation, "trained_tokenizer", spy)
        data = ready(sample)
        assert sorted(seen[0].tolist()) == sorted(data.chosen_folds()[0].train.tolist())

    def test_other_rows_held_out_than_in_the_run(self, sample: Path) -> None:
        data = ready(sample)
        with pytest.raises(DataError, match="other rows are held out here than in the run"):
            of_a_run(new(sample, seed=1), data.facts).setup("fit")


# batches


def valid(side: Tensor) -> Tensor:
    return side != PAD


def check_batch(batch: dict[str, Any], max_tokens: int, world: int = 1) -> None:
    for side in (batch["source"], batch["target"]):
        assert side.dtype == torch.int64
        mask = valid(side)
        ends = mask.sum(1) - 1
        assert (side.gather(1, ends.unsqueeze(1)) == EOS).all()  # eos is the last, and padding comes after it
        assert ((side == EOS).sum(1) == 1).all()
        assert (mask.long().diff(dim=1) <= 0).all()
        assert mask.all(0).any()
        assert mask[:, -1].any()
    assert len(batch["row"]) * max(batch["source"].shape[1], batch["target"].shape[1]) * world <= max_tokens * 1.2


class TestLoaders:
    def test_training(self, sample: Path) -> None:
        data = ready(sample, max_tokens=1000)
        loader = data.train_dataloader()
        batches = list(loader)
        assert len(batches) == len(loader) > 20
        rows = torch.cat([batch["row"] for batch in batches])
        assert sorted(rows.tolist()) == data.chosen_folds()[0].train.tolist()
        english, chinese = lines(sample / "raw.en"), lines(sample / "raw.zh")
        for batch in batches:
            assert set(batch) == {"source", "target", "row", "places", "lengths"}
            check_batch(batch, 1000)
            for text, raw, clean in (("source", english, clean_en), ("target", chinese, clean_zh)):
                said = data.tokenizer.decode(batch[text].tolist())
                assert said == [clean(raw[row]).lower() for row in batch["row"].tolist()]

    @settings(max_examples=10)
    @given(world=st.integers(1, 8), epoch=st.integers(0, 3))
    def test_ranks(self, sample: Path, world: int, epoch: int) -> None:
        ranks = []
        for rank in range(world):
            data = of_a_run(ready(sample, max_tokens=2000), None, rank, world)
            loader = data.train_dataloader()
            loader.sampler.set_epoch(epoch)
            ranks.append(list(loader))
        assert len({len(batches) for batches in ranks}) == 1
        for batches in ranks:
            for batch in batches:
                check_batch(batch, 2000, world)
        rows = [row for batches in ranks for batch in batches for row in batch["row"].tolist()]
        assert sorted(rows) == data.chosen_folds()[0].train.tolist()
        for name in ("val", "test"):
            judged = [
                row
                for rank in range(world)
                for batch in getattr(of_a_run(data, None, rank, world), f"{name}_dataloader")()
                for row in batch["row"].tolist()
            ]
            assert sorted(judged) == data.chosen_folds()[0].val.tolist()

    @pytest.mark.parametrize("workers", [0, 2])
    def test_goes_on_in_the_middle_of_an_epoch(self, sample: Path, workers: int) -> None:
        def loader() -> Any:
            data = ready(sample, max_tokens=2000, workers=workers)
            found: Any = data.train_dataloader()
            found.sampler.set_epoch(2)
            return found

        whole = list(loader())
        stopped = loader()
        given = [batch for batch, _ in zip(stopped, range(4), strict=False)]
        state = stopped.state_dict()
        resumed = loader()
        resumed.load_state_dict(state)
        rest = list(resumed)
        assert len(rest) == len(whole) - state["given"] >= len(whole) - 5
        for batch, expected in zip([*given, *rest], whole[:4] + whole[state["given"] :], strict=True):
            for name, value in expected.items():
                assert torch.equal(batch[name], value) if isinstance(value, torch.Tensor) else batch[name] == value

    def test_the_order_changes_with_the_epoch(self, sample: Path) -> None:
        loader: Any = ready(sample, max_tokens=2000).train_dataloader()
        orders = []
        for epoch in (0, 1, 0):
            loader.sampler.set_epoch(epoch)
            orders.append([tuple(batch["row"].tolist()) for batch in loader])
        assert orders[0] == orders[2]
        assert len(set(orders[0]) & set(orders[1])) < len(orders[0]) / 2

    def test_rounded_lengths(self, sample: Path) -> None:
        for batch in ready(sample, multiple=8, max_tokens=2000).train_dataloader():
            assert batch["source"].shape[1] % 8 == batch["target"].shape[1] % 8 == 0
            assert len(batch["row"]) * max(batch["source"].shape[1], batch["target"].shape[1]) <= 2000

    @pytest.mark.parametrize(("device", "multiple"), [("cuda", 8), ("cpu", 1)])
    def test_lengths_are_rounded_for_a_gpu(self, sample: Path, device: str, multiple: int) -> None:
        data = of_a_run(new(sample, max_tokens=2000))
        data.trainer.strategy.root_device = torch.device(device)
        data.setup("fit")
        loader: Any = data.train_dataloader()
        widths = [loader.dataset[rows]["source"].shape[1] for rows in loader.sampler]
        assert math.gcd(*widths) == multiple

    def test_validation(self, sample: Path) -> None:
        data = ready(sample, quick=50)
        batches = list(data.val_dataloader())
        english, chinese = lines(sample / "raw.en"), lines(sample / "raw.zh")
        for batch in batches:
            rows = batch["row"].tolist()
            assert batch["text"] == [english[row] for row in rows]
            assert batch["raw_reference"] == [chinese[row] for row in rows]
            assert batch["reference"] == [clean_zh(chinese[row]) for row in rows]
            assert data.tokenizer.decode(batch["target"].tolist()) == batch["reference"]
        quick = [set(batch["row"][batch["quick"]].tolist()) for batch in batches]
        assert sum(map(len, quick)) == 50
        again = [set(batch["row"][batch["quick"]].tolist()) for batch in data.val_dataloader()]
        assert quick == again

    def test_backwards(self, sample: Path) -> None:
        data, back = ready(sample), ready(sample, source="zh", target="en")
        assert back.facts is not None
        assert (back.facts["source"], back.facts["target"]) == ("zh", "en")
        assert torch.equal(back.facts["tokenizer"], data.facts["tokenizer"])  # type: ignore[index]
        found = {
            (row, tuple(filter(None, source)), tuple(filter(None, target)))
            for batch in data.val_dataloader()
            for row, source, target in zip(*(batch[name].tolist() for name in ("row", "source", "target")), strict=True)
        }
        for batch in back.val_dataloader():
            numbers = (batch[name].tolist() for name in ("row", "target", "source"))
            for row, source, target in zip(*numbers, strict=True):
                assert (row, tuple(filter(None, source)), tuple(filter(None, target))) in found
            assert batch["raw_reference"] == [lines(sample / "raw.en")[row] for row in batch["row"].tolist()]

    def test_few_pairs_for_many_ranks(self, tmp_path: Path) -> None:
        write(tmp_path, "a.tsv", *made_up(30))
        data = of_a_run(ready(tmp_path, pairs=["a.tsv"]), None, 0, 8)
        with pytest.raises(DataError, match="3 pairs to judge cannot be shared out over 8 processes"):
            data.val_dataloader()


# back-translation


class TestSynthetic:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        write(tmp_path, "a.tsv", *made_up(100))
        write(tmp_path, "synthetic.tsv", *made_up(60, 1000))
        return tmp_path

    def test_only_trained_on(self, folder: Path) -> None:
        alone = ready(folder, pairs=["a.tsv"])
        data = ready(folder, pairs=["a.tsv"], synthetic="synthetic.tsv")
        assert data.facts["held_out"] == alone.facts["held_out"]  # type: ignore[index]
        assert torch.equal(data.facts["tokenizer"], alone.facts["tokenizer"])  # type: ignore[index]
        rows = data.train_rows()
        assert rows[:90].tolist() == alone.train_rows().tolist()
        assert rows[90:].tolist() == list(range(100, 160))
        assert [row for batch in data.val_dataloader() for row in batch["row"].tolist()] == [
            row for batch in alone.val_dataloader() for row in batch["row"].tolist()
        ]

    @pytest.mark.parametrize("tag", [True, False])
    def test_tag(self, folder: Path, tag: bool) -> None:
        data = ready(folder, pairs=["a.tsv"], synthetic="synthetic.tsv", tag=tag)
        seen = 0
        for batch in data.train_dataloader():
            check_batch(batch, 4096)
            for row, source in zip(batch["row"].tolist(), batch["source"].tolist(), strict=True):
                marked = tag and row >= 100
                assert (source[0] == data.tokenizer.tag) == marked
                assert source[marked:].index(EOS) == len(data.corpus.ids(row, 0))
                seen += marked
            assert not (batch["target"] == data.tokenizer.tag).any()
        assert seen == 60 * tag

    @pytest.mark.parametrize(("ratio", "count"), [(0.5, 45), (0.0, 0), (2.0, 180)])
    def test_ratio(self, folder: Path, ratio: float, count: int) -> None:
        data = ready(folder, pairs=["a.tsv"], synthetic="synthetic.tsv", synthetic_ratio=ratio)
        rows = data.train_rows()[90:]
        assert len(rows) == count
        times = np.bincount(rows - 100, minlength=60)
        assert times.max() - times.min() <= 1
        found = [row for batch in data.train_dataloader() for row in batch["row"].tolist()]
        assert sorted(found) == sorted(data.train_rows().tolist())
        again = ready(folder, pairs=["a.tsv"], synthetic="synthetic.tsv", synthetic_ratio=ratio)
        assert np.array_equal(again.train_rows(), data.train_rows())

    def test_what_is_held_out_does_not_come_back(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        alone = ready(folder, pairs=["a.tsv"])
        held = alone.chosen_folds()[0].val.tolist()
        (_, chinese), (english, _) = (made_up(100)[row] for row in held[:2])
        leaks = [("another source", chinese), (english.upper(), "別的話"), ("fine", "可以")]
        write(folder, "synthetic.tsv", *leaks)
        with caplog.at_level("INFO"):
            data = ready(folder, pairs=["a.tsv"], synthetic="synthetic.tsv")
        assert data.train_rows()[90:].tolist() == [102]
        assert "1 synthetic pairs of 3 (2 left out, as a sentence of theirs is held out)" in caplog.text
        write(folder, "synthetic.tsv", *leaks[:2])
        with pytest.raises(
            DataError, match=r"synthetic\.tsv: no pairs left to train on: 0 synthetic pairs of 2 \(2 left"
        ):
            ready(folder, pairs=["a.tsv"], synthetic="synthetic.tsv", synthetic_only=True)

    def test_alone(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        real = ready(folder, pairs=["a.tsv"])
        with caplog.at_level("INFO"):
            data = ready(folder, pairs=["a.tsv"], synthetic="synthetic.tsv", synthetic_only=True)
        assert "0 pairs to train on, 10 held out" in caplog.text
        assert "and 60 synthetic pairs of 60 (0 left out" in caplog.text
        assert data.facts is not None
        assert real.facts is not None
        assert torch.equal(data.facts["tokenizer"], real.facts["tokenizer"])
        assert {**data.facts, "tokenizer": None} == {**real.facts, "tokenizer": None}
        seen = list(data.train_dataloader())
        assert sorted(row for batch in seen for row in batch["row"].tolist()) == list(range(100, 160))
        assert not any((batch["source"] == data.tokenizer.tag).any() for batch in seen)
        judged = [[row for batch in d.val_dataloader() for row in batch["row"].tolist()] for d in (data, real)]
        assert judged[0] == judged[1]

    def test_a_missing_file(self, folder: Path) -> None:
        with pytest.raises(DataError, match=r"other\.tsv: there is no such file \(data\.synthetic\)"):
            ready(folder, pairs=["a.tsv"], synthetic="other.tsv")


# test and prediction, with a model at hand


class TestOfAModel:
    @pytest.fixture
    def facts(self, sample: Path) -> dict[str, Any]:
        data = ready(sample)
        assert data.facts is not None
        saved = io.BytesIO()
        torch.save(data.facts, saved)
        saved.seek(0)
        return torch.load(saved, weights_only=True)

    def test_facts(self, facts: dict[str, Any]) -> None:
        assert {name: facts[name] for name in ("pad", "unk", "bos", "eos", "source", "target", "max_length")} == {
            "pad": 0, "unk": 1, "bos": 2, "eos": 3, "source": "en", "target": "zh", "max_length": 256,
        }  # fmt: skip
        assert facts["vocabulary"] == len(Tokenizer.from_tensor(facts["tokenizer"])) <= 600

    def test_no_training_files_are_needed(self, sample: Path, facts: dict[str, Any], tmp_path: Path) -> None:
        for side in ("en", "zh"):
            shutil.copy(sample / f"test.{side}", tmp_path)
        for stage in ("test", "predict"):
            data = of_a_run(new(tmp_path), facts)
            data.setup(stage)
            assert torch.equal(data.tokenizer.as_tensor(), facts["tokenizer"])
        english, chinese = lines(sample / "test.en"), lines(sample / "test.zh")
        tested = list(data.test_dataloader())
        for batch in tested:
            rows = batch["row"].tolist()
            assert batch["quick"].all()
            assert batch["text"] == [english[row] for row in rows]
            assert batch["raw_reference"] == [chinese[row] for row in rows]
            assert data.tokenizer.decode(batch["source"].tolist()) == [clean_en(english[row]).lower() for row in rows]
        predicted = list(data.predict_dataloader())
        assert {frozenset(batch) for batch in predicted} == {frozenset({"source", "row"})}
        for batches in (tested, predicted):
            assert sorted(row for batch in batches for row in batch["row"].tolist()) == list(range(200))

    def test_a_pseudo_test_set_is_translated_and_not_scored(
        self, sample: Path, facts: dict[str, Any], tmp_path: Path
    ) -> None:
        for name in ("raw.en", "raw.zh", "test.en"):
            shutil.copy(sample / name, tmp_path)
        (tmp_path / "test.zh").write_text("。\n" * 200, encoding="utf-8")
        data = of_a_run(new(tmp_path), facts)
        data.setup("test")
        assert data.describe_test().startswith("held-out pairs")
        held = data.chosen_folds()[0].val.tolist()
        assert sorted(row for batch in data.test_dataloader() for row in batch["row"].tolist()) == held
        data.setup("predict")
        assert sum(len(batch["row"]) for batch in data.predict_dataloader()) == 200
        back = of_a_run(new(tmp_path, source="zh", target="en"), facts | {"source": "zh", "target": "en"})
        with pytest.raises(DataError, match=r"nothing to translate from zh in it; name another test set"):
            back.setup("predict")
        back = of_a_run(new(tmp_path, source="zh", target="en"))
        back.setup("test")
        assert back.describe_test().startswith("held-out pairs")

    def test_another_test_set(self, sample: Path, facts: dict[str, Any], tmp_path: Path) -> None:
        write(tmp_path, "news.tsv", *made_up(7), ("", ""), ("(aside)", "旁白"))
        data = of_a_run(new(sample, test=str(tmp_path / "news.tsv")), facts)
        data.setup("test")
        batches = list(data.test_dataloader())
        rows = {row: n for batch in batches for n, row in enumerate(batch["row"].tolist())}
        assert sorted(rows) == list(range(9))  # empty lines and empty by cleaning are kept
        for batch in batches:
            for row, source in zip(batch["row"].tolist(), batch["source"].tolist(), strict=True):
                assert (source[0] == EOS) == (row >= 7)
        with pytest.raises(DataError, match=r"gone: there is no such file \(data\.test\)"):
            of_a_run(new(sample, test="gone"), facts).setup("test")

    def test_unknown_characters_come_back(self, facts: dict[str, Any], tmp_path: Path) -> None:
        write(tmp_path, "a.tsv", ("some 😀 text", "𠮷龘😀"))
        data = of_a_run(new(tmp_path, test="a.tsv"), facts)
        data.setup("test")
        (batch,) = data.test_dataloader()
        assert batch["reference"] == ["𠮷龘😀"]
        assert data.tokenizer.decode(batch["source"].tolist()) == ["some 😀 text"]

    def test_long_test_sentences_are_cut(self, facts: dict[str, Any], tmp_path: Path) -> None:
        write(tmp_path, "a.tsv", *made_up(2), ("x " * 500, "短"))
        data = of_a_run(new(tmp_path, test="a.tsv", max_length=64), facts)
        with pytest.warns(UserWarning, match=r"a\.tsv, line 4: \d+ tokens, cut to data\.max_length = 64"):
            data.setup("predict")
        batches = list(data.predict_dataloader())
        assert max(batch["source"].shape[1] for batch in batches) == 64
        assert sum(len(batch["row"]) for batch in batches) == 3

    def test_nothing_to_predict(self, sample: Path, facts: dict[str, Any], tmp_path: Path) -> None:
        shutil.copy(sample / "raw.en", tmp_path)
        with pytest.raises(DataError, match=r"no test set here \(test\.en or test\.raw\.en\)"):
            of_a_run(new(tmp_path), facts).setup("predict")

    def test_languages_must_match(self, sample: Path, facts: dict[str, Any]) -> None:
        with pytest.raises(DataError, match="are zh and en, but the model was trained from en to zh"):
            of_a_run(new(sample, source="zh", target="en"), facts).setup("test")

    def test_sentences_longer_than_the_model_was_made_for(self, sample: Path, facts: dict[str, Any]) -> None:
        with pytest.raises(DataError, match=r"data\.max_length is 300, but the model .* up to 256 tokens; lower it"):
            of_a_run(new(sample, max_length=300), facts).setup("test")

    def test_resuming_keeps_the_tokenizer(self, sample: Path, facts: dict[str, Any]) -> None:
        data = of_a_run(new(sample, vocabulary=500), facts)
        data.setup("fit")
        assert torch.equal(data.facts["tokenizer"], facts["tokenizer"])  # type: ignore[index]

    def test_a_damaged_tokenizer(self, sample: Path, facts: dict[str, Any]) -> None:
        with pytest.raises(DataError, match="the tokenizer is no SentencePiece model"):
            of_a_run(new(sample), facts | {"tokenizer": torch.zeros(5, dtype=torch.uint8)}).setup("test")


# results


def test_labels_and_score(sample: Path) -> None:
    data = ready(sample)
    rows = np.array([5, 0, 17])
    names, true = data.labels(rows)
    assert names == ["raw.en:6", "raw.en:1", "raw.en:18"]
    chinese = lines(sample / "raw.zh")
    assert true.tolist() == [clean_zh(chinese[row]) for row in rows]
    assert data.score(true, true) == pytest.approx(100)
    said = np.array([text[:-3] + "好" for text in true], object)
    expected = sacrebleu.corpus_bleu(said.tolist(), [true.tolist()], tokenize="zh").score
    assert data.score(true, said) == pytest.approx(expected)
    english = np.array(["the cat sat on the mat , said he", "and so on it went"], object)
    wrong = np.array(["the cat sat on a mat , said he", "and so on it went"], object)
    expected = sacrebleu.corpus_bleu(wrong.tolist(), [english.tolist()], tokenize="13a").score
    assert data.score(english, wrong) == pytest.approx(expected)
    assert 0 < expected < 100
    assert data.baselines() == []


def test_the_edition_is_known_by_its_number_of_pairs(sample: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = ready(sample)
    data.real.counts[:, 0] = 398_066
    assert [known.edition for known in data.baselines()] == ["2021", "2022"]
    data.target = "en"
    assert data.baselines() == []


def test_describe(sample: Path) -> None:
    told = TranslationData.describe(sample)
    assert told == TranslationData.describe(sample.parent.parent)
    text = "\n".join(told)
    data = TranslationData(dir=str(sample))
    data.setup("fit")
    loader = data.train_dataloader()
    tokens = sum(int(valid(batch[side]).sum()) for batch in loader for side in ("source", "target"))
    cells = sum(batch[side].numel() for batch in loader for side in ("source", "target"))
    assert f"{len(loader)} batches of up to data.max_tokens = 4,096: {tokens / len(loader):,.0f} tokens" in text
    assert f"{1 - tokens / cells:.1%} padding" in text
    assert "2,970 pairs to train on, 30 held out" in text
    assert "left out of 3,000: 0 with an empty side" in text
    histogram = told[told.index("pairs by tokens of the longer side:") + 1 :]
    assert sum(int(line.split()[-1].replace(",", "")) for line in histogram) == 2970
    assert max(line.count("#") for line in histogram) == 50


def test_the_verb(sample: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "describe", "hw5_translation", str(sample)]) == 0
    assert capsys.readouterr().out.splitlines() == TranslationData.describe(sample)


def test_real_corpus(real_data: Callable[[str], Path]) -> None:
    """Padding under 10 % at 4,096 tokens, in full batches; every course rule on real lines."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it is Traditional, nothing is cut
        data = TranslationData(dir=str(real_data("hw5_translation")))
        data.setup("fit")
    assert data.real.counts.tolist() == [[46586, 0, 0, 3]]
    assert data.facts is not None
    assert data.facts["vocabulary"] == 8000
    assert 440 < len(data.chosen_folds()[0].val) < 490
    loader = data.train_dataloader()
    tokens, cells, longer = 0, 0, []
    for batch in loader:
        tokens += int(valid(batch["source"]).sum() + valid(batch["target"]).sum())
        cells += batch["source"].numel() + batch["target"].numel()
        longer.append(max(batch["source"].numel(), batch["target"].numel()))
    assert 1 - tokens / cells < 0.1
    assert max(longer) <= 4096
    data.test_file = "ntrex.tsv.gz"
    data.setup("test")
    scored = [
        pair for batch in data.test_dataloader() for pair in zip(batch["text"], batch["raw_reference"], strict=True)
    ]
    assert len(scored) == 999
    assert ("Welsh AMs worried about 'looking like muppets'", "威爾斯國會議員 (AM) 擔心「看起來像布偶」") in scored
    assert np.mean(longer) > 0.95 * 4096


def test_the_two_archives_of_the_course_belong_together(sample: Path, tmp_path: Path) -> None:
    (tmp_path / "packed").mkdir()
    for name, part, around in (("ted2020", "raw", "."), ("test", "test", "test")):  # as the course did it
        (tmp_path / name / around).mkdir(parents=True)
        for path in sample.glob(f"{part}.*"):
            shutil.copy(path, tmp_path / name / around)
        shutil.make_archive(str(tmp_path / "packed" / name), "gztar", tmp_path / name)
    home = tmp_path / "root" / "hw5_translation"
    assert TranslationData.prepare(home, tmp_path / "packed") == [home / "unpacked"]
    for stage in ("fit", "predict"):
        TranslationData(root=str(tmp_path / "root"), vocabulary=600).setup(stage)
