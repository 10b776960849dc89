"""`leeml distill`, and the ways of a run's own translations back into training, by the commands a user types."""

import shutil

import pytest
import torch
import yaml
from conftest import answer, assert_fails, works
from translation_run import PAIRS, train, write_data

from datamodules.hw5_translation import TranslationData
from datamodules.text.cleaning import clean_zh
from modules.hw5_translation import Translator
from scripts.translation.chunks import CHUNK
from scripts.translation.translator import LineTranslator

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("root"))


@pytest.fixture(scope="module")
def run(root, tmp_path_factory):
    return train(root, tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def table(run, tmp_path_factory):
    path = tmp_path_factory.mktemp("distilled") / "distilled.tsv"
    works("distill", "--run_dir", run, "--output", path)
    return path


@pytest.fixture(scope="module")
def folder(root):
    return root / "hw5_translation" / "sample"


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def of_run(folder, **options):
    """The run's own data."""
    data = TranslationData(dir=str(folder), folds=10, vocabulary=400, max_tokens=2048, max_length=64, **options)
    data.setup("fit")
    return data


def test_the_training_part_and_nothing_held_out(run, table, folder, tmp_path):
    header, *rows = lines(table)
    assert header == "en\tzh"
    train, val = of_run(folder).chosen_folds()[0]
    english, chinese = lines(folder / "raw.en"), lines(folder / "raw.zh")
    sources, said = zip(*(row.split("\t") for row in rows), strict=True)
    assert list(sources) == [english[row] for row in train]
    assert len(sources) == PAIRS - len(val)
    assert not set(sources) & {english[row] for row in val}
    assert not set(said) & {chinese[row] for row in train}  # it is the teacher's, not what people wrote
    (tmp_path / "train.en").write_text("".join(f"{line}\n" for line in sources))
    assert works("translate", "--run_dir", run, tmp_path / "train.en", "--cleaned").out.splitlines() == list(said)


def test_a_student_trains_on_it_alone(table, folder, root, tmp_path):
    alone = of_run(folder)
    data = of_run(folder, synthetic=str(table), synthetic_only=True)
    assert data.train_rows().min() >= PAIRS
    assert len(data.train_rows()) > PAIRS // 2  # babble that is too long is cleaned away
    assert data.facts["held_out"] == alone.facts["held_out"]
    assert torch.equal(data.facts["tokenizer"], alone.facts["tokenizer"])
    flags = ["--data.synthetic", table, "--data.synthetic_only", "true"]
    train(root, tmp_path / "student", *flags, "--trainer.max_steps", 2)
    config = yaml.safe_load((tmp_path / "student" / "config.yaml").read_text())
    assert config["data"]["init_args"]["synthetic"] == str(table)


def test_shards_and_resumed_tables_are_the_whole(run, table, tmp_path, monkeypatch):
    parts = [tmp_path / f"{n}.tsv" for n in (1, 2)]
    for n, part in enumerate(parts, 1):
        works("distill", "--run_dir", run, "--output", part, "--shard", f"{n}/2")
    assert parts[0].read_bytes() + parts[1].read_bytes() == table.read_bytes()
    assert len(lines(parts[0])) == 1 + CHUNK
    with monkeypatch.context() as patch:
        patch.setattr(LineTranslator, "__call__", stop_at_second(LineTranslator.__call__))
        assert answer("distill", "--run_dir", run, "--output", tmp_path / "new.tsv").code == 130
    assert not (tmp_path / "new.tsv").exists()
    assert lines(tmp_path / "new.tsv.part") == lines(parts[0])
    works("distill", "--run_dir", run, "--output", tmp_path / "new.tsv", "--resume")
    assert (tmp_path / "new.tsv").read_bytes() == table.read_bytes()


def stop_at_second(function):
    calls = []

    def call(self, chunk):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return function(self, chunk)

    return call


def test_data_elsewhere(run, table, folder, tmp_path):
    moved = shutil.copytree(folder, tmp_path / "moved" / "hw5_translation")
    out = ["--output", tmp_path / "new.tsv"]
    assert_fails(
        tmp_path, "distill", "--run_dir", run, "--data.root", tmp_path / "gone", *out, says=["gone: no such folder"]
    )
    (moved / "raw.en").write_text((moved / "raw.en").read_text().replace(".\n", " now.\n", 50))
    (moved / "raw.zh").write_text("".join(f"{line}\n" for line in lines(moved / "raw.zh")[::-1]), encoding="utf-8")
    assert_fails(
        tmp_path, "distill", "--run_dir", run, "--data.root", tmp_path / "moved", *out,
        says=["other rows are held out here than in the run"],
    )  # fmt: skip
    for name in ("raw.en", "raw.zh"):
        shutil.copy(folder / name, moved)
    works("distill", "--run_dir", run, "--data.root", tmp_path / "moved", *out)
    assert (tmp_path / "new.tsv").read_bytes() == table.read_bytes()


def test_a_name_that_is_no_table(run, tmp_path):
    says = ["out.txt.gz: expected a name that ends in .tsv"]
    assert_fails(tmp_path, "distill", "--run_dir", run, "--output", tmp_path / "out.txt.gz", says=says)


def test_back_translation_by_commands(root, folder, tmp_path, monkeypatch):
    """Reverse, translate monolingual text, and train on both; and a reverse teacher's columns are in their places."""
    back = tmp_path / "back"
    train(root, back, "--data.source", "zh", "--data.target", "en", "--trainer.max_steps", 2)
    more = [f"{line[:-1]}了。" for line in lines(folder / "test.zh")]
    (tmp_path / "mono.zh").write_text("".join(f"{line}\n" for line in more), encoding="utf-8")
    with monkeypatch.context() as patch:  # two steps teach no English
        patch.setattr(Translator, "translate", lambda self, source: ["so it was , they say ."] * len(source))
        works("translate", "--run_dir", back, tmp_path / "mono.zh", "--output", tmp_path / "mono.en")
    assert set(lines(tmp_path / "mono.en")) == {"so it was, they say."}
    data = of_run(folder, synthetic=str(tmp_path / "mono"))
    assert len(data.synthetic) == len(more)
    assert data.synthetic.text()[:2] == ["so it was , they say .", clean_zh(more[0])]
    both = tmp_path / "both"
    train(root, both, "--data.synthetic", tmp_path / "mono", "--trainer.max_steps", 2)
    works("distill", "--run_dir", both, "--output", tmp_path / "both.tsv", "--beam", 1)
    assert len(lines(tmp_path / "both.tsv")) == 1 + len(of_run(folder).train_rows())  # the real pairs alone
    works("distill", "--run_dir", back, "--output", tmp_path / "back.tsv", "--beam", 1)
    header, *rows = lines(tmp_path / "back.tsv")
    chinese = lines(folder / "raw.zh")
    assert header == "en\tzh"
    assert [row.split("\t")[1] for row in rows] == [chinese[row] for row in of_run(folder).train_rows()]
