"""scripts/export.py: what an exported folder says, run by its own example, is what leeml says."""

import ast
import csv
import json
import runpy
import shutil
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from conftest import answer, assert_fails, works

from datamodules import generated
from datamodules.errors import DataError
from datamodules.speech.audio import log_mel, mfcc, normalise, read_audio
from datamodules.text.cleaning import CLEAN
from datamodules.text.tokenizer import EOS, PAD
from modules.hw2_phoneme import PhonemeClassifier
from modules.hw5_parallel import MaskedTranslator
from modules.hw5_translation import Translator
from modules.nets.frame_encoders import TransformerFrames
from modules.nets.recurrent import Recurrent
from modules.nets.recurrent_seq2seq import RecurrentSeq2Seq
from modules.translation.detokenize import RESTORE
from scripts.exports.card import score_lines
from scripts.exports.graphs import Graph, graphs_of
from scripts.exports.writing import write_graph
from scripts.run.checkpoint import load_checkpoint, load_model

OLD = Path(__file__).parent.parent / "old_runs"
HOMEWORKS = ("hw1_covid", "hw2_phoneme", "hw3_food", "hw4_speaker", "hw5_translation")
OURS = {"modules", "datamodules", "callbacks", "scripts", "lightning", "leeml"}


@cache
def old_model(homework):
    return load_model(OLD / homework / "checkpoints/last.ckpt")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Folder of an old run's export, made once: exported(homework, format)."""

    @cache
    def make(homework, kind):
        folder = tmp_path_factory.mktemp("exported") / f"{homework}_{kind}"
        works("export", "--run_dir", OLD / homework, "--format", kind, "--output", folder)
        return folder

    return make


@pytest.fixture
def example(monkeypatch, capsys):
    """What the example of an exported folder prints, line by line."""

    def run(folder, *args):
        monkeypatch.syspath_prepend(folder)
        monkeypatch.setattr(sys, "argv", ["example.py", *map(str, args)])
        for name in ("runtime", "cleaning", "detokenize"):  # those of another folder
            monkeypatch.delitem(sys.modules, name, raising=False)
        runpy.run_path(str(folder / "example.py"))
        return capsys.readouterr().out.splitlines()

    return run


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("recording") / "voice.wav"
    noise = np.random.default_rng(0).normal(size=16000 * 2) * np.hanning(16000 * 2)
    soundfile.write(path, noise * 0.1, 16000, subtype="FLOAT")
    return path


pytestmark = pytest.mark.slow


@pytest.mark.parametrize("kind", ["onnx", "torch"])
@pytest.mark.parametrize("homework", HOMEWORKS)
def test_a_folder_needs_no_leeml_and_says_what_it_is(exported, homework, kind):
    folder = exported(homework, kind)
    files = {path.name for path in folder.iterdir()}
    assert files >= {"README.md", "example.py", "facts.json", "runtime.py"}
    assert json.loads((folder / "facts.json").read_text("utf-8"))["homework"] == homework
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            found = (
                [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "") or ""]
            )
            assert not {name.split(".")[0] for name in found} & OURS
    text = (folder / "README.md").read_text("utf-8")
    parameters = sum(p.numel() for p in old_model(homework).parameters())
    for part in (f"{parameters:,} parameters", "python example.py", "the tolerance 0.0001", "optimizer steps"):
        assert part in text


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_hw1_predicts_the_submission(exported, example, kind, tmp_path):
    generated.write_covid(tmp_path / "data")
    said = [
        float(line.split(",")[1]) for line in example(exported("hw1_covid", kind), tmp_path / "data/covid.test.csv")
    ]
    with open(OLD / "hw1_covid/submission.csv", newline="") as file:
        expected = [float(row["tested_positive"]) for row in csv.DictReader(file)]
    np.testing.assert_allclose(said, expected, rtol=1e-4)


def phones_of(recording, model):
    """The model's labels of all frames of a recording."""
    x = torch.from_numpy(normalise(mfcc(read_audio(recording))))
    batch = {"x": x[None], "mask": torch.ones(1, len(x), dtype=torch.bool), "places": torch.arange(len(x))}
    with torch.no_grad():
        path = model.labels(batch | {"lengths": [len(x)]})
    assert len(path.unique()) > 1
    return [model.facts["classes"][label] for label in path.tolist()]


def test_hw2_says_the_phones_of_a_recording(exported, example, recording):
    (said,) = example(exported("hw2_phoneme", "onnx"), recording)
    assert said.split() == phones_of(recording, old_model("hw2_phoneme"))


def test_hw2_hears_a_recording_as_several_throats(example, recording, tmp_path):
    run = shutil.copytree(OLD / "hw2_phoneme", tmp_path / "run")
    for path in (run / "checkpoints").iterdir():
        checkpoint = torch.load(path, weights_only=True)
        throats = {"vtln": 3, "augment": [{"class_path": "modules.nets.vocal_tract.VocalTract"}]}
        checkpoint["config"]["model"]["init_args"] |= throats
        torch.save(checkpoint, path)
    works("export", "--run_dir", run, "--format", "torch", "--output", tmp_path / "out")
    (said,) = example(tmp_path / "out", recording)
    expected = phones_of(recording, load_model(run / "checkpoints/last.ckpt"))
    assert said.split() == expected != phones_of(recording, old_model("hw2_phoneme"))


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_hw3_classifies_photos_as_the_submission(exported, example, kind, tmp_path, monkeypatch):
    monkeypatch.setattr(generated, "FOOD_IMAGES", {"training": 4, "validation": 1, "test": 1, "unlabeled": 0})
    generated.write_food(tmp_path / "food")
    photos = sorted(path for path in (tmp_path / "food").rglob("*.jpg") if "test" in path.parts[-2])
    with open(OLD / "hw3_food/submission.csv", newline="") as file:
        expected = [list(row.values())[1] for row in csv.DictReader(file)]
    assert len(photos) == len(expected)
    said = [example(exported("hw3_food", kind), photo)[0].split()[1] for photo in photos]
    assert said == [str(int(label)) for label in expected]


def test_hw4_says_who_speaks(exported, example, recording):
    model = old_model("hw4_speaker")
    with torch.no_grad():
        shares = model(torch.from_numpy(log_mel(read_audio(recording)))[None]).exp()[0]
    said = [line.split() for line in example(exported("hw4_speaker", "onnx"), recording)]
    top = shares.topk(5)
    np.testing.assert_allclose([float(share) for share, _ in said], top.values, atol=2e-3)  # float32 frames
    assert said[0][1] == model.facts["classes"][int(top.indices[0])]


@pytest.mark.parametrize("kind", ["onnx", "torch"])
def test_hw5_translates_step_by_step(exported, example, kind):
    model = old_model("hw5_translation")
    texts = ["This is a sentence.", "We (all) think that it is a longer one, don't we?"]
    sources = [[*model.pieces.encode(CLEAN["en"](text)), EOS] for text in texts]
    longest = max(map(len, sources))
    padded = torch.tensor([tokens + [PAD] * (longest - len(tokens)) for tokens in sources])
    expected = [RESTORE["zh"](text) for text in model.translate(padded, beam=1)]
    assert all(expected)
    assert example(exported("hw5_translation", kind), *texts) == expected


# networks that no old run has


def phonemes(net, window=None):
    module = PhonemeClassifier(net=net)
    facts = {"classes": list("abc"), "silence": 0, "features": 5, "window": window, "transitions": torch.zeros(3, 3)}
    module.expect(facts)
    module.configure_model()
    return module.eval()


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (lambda: phonemes(None, 11), "torch"),
        (
            lambda: phonemes(lambda width: TransformerFrames(width, 8, 2, 8, positions="learned", max_length=70)),
            "torch",
        ),
        (lambda: phonemes(lambda width: Recurrent(width, 4)), "onnx"),
        (lambda: phonemes(lambda width: Recurrent(width, 4, cell="gru")), "onnx"),
    ],
)
def test_other_networks_of_frames(module, kind, tmp_path):
    (graph,) = graphs_of(module(), {})
    assert write_graph(graph, kind, tmp_path / "model") < 1e-4
    assert graph.inputs["x"].shape[0] != graph.others["x"].shape[0]


def translator(kind=Translator, net=None):
    facts = dict(old_model("hw5_translation").facts)
    module = kind(net=net) if net else kind()
    module.expect(facts)
    module.configure_model()
    return module.eval()


def test_recurrent_translators_are_written_as_onnx_alone(tmp_path):
    graphs = graphs_of(translator(net=lambda size: RecurrentSeq2Seq(size, 8, 8, 2)), {})
    assert [graph.name for graph in graphs] == ["encoder", "decoder_step"]
    for graph in graphs:
        assert write_graph(graph, "onnx", tmp_path / graph.name) < 1e-4
    with pytest.raises(DataError, match="use --format onnx"):
        write_graph(graphs[0], "torch", tmp_path / "refused")
    assert not (tmp_path / "refused").exists()


def test_non_autoregressive_translators_are_refused():
    with pytest.raises(DataError, match="MaskedTranslator is not exported"):
        graphs_of(translator(MaskedTranslator), {})


def test_a_file_that_says_something_else_is_refused(tmp_path):
    class Noisy(torch.nn.Module):
        def forward(self, x):
            return x + torch.randn(x.shape)

    x = {"x": torch.zeros(2, 3)}
    with pytest.raises(DataError, match="differs from the network's"):
        write_graph(Graph("model", Noisy(), x, x, {"x": {}}, ["y"]), "torch", tmp_path / "model")


# the command


def test_the_card_tells_scores_with_their_spread_over_folds(tmp_path):
    for fold, score in enumerate((0.5, 0.6, 0.7)):
        run = tmp_path / f"fold_{fold}"
        run.mkdir()
        (run / "scores.json").write_text(json.dumps({"best val/accuracy": score}))
    assert score_lines(tmp_path / "fold_1")[-1] == "| best val/accuracy | 0.6 | 0.6 ± 0.1, 3 folds |"
    alone = shutil.copytree(tmp_path / "fold_1", tmp_path / "alone")
    (alone / "scores.json").write_text(json.dumps({"test/accuracy": 0.6, "tested on": "the test set"}))
    assert score_lines(alone)[2:] == [
        "| test/accuracy | 0.6 |", "", "`test/...`: the test set.",
        "How much they differ between splits of the data was not measured (`leeml kfold` does).",
    ]  # fmt: skip
    assert "Not recorded" in score_lines(tmp_path)[0]


def test_mistakes_are_one_line_and_leave_nothing(run, tmp_path, monkeypatch):
    assert_fails(tmp_path, "export", says=["--run_dir"])
    assert_fails(tmp_path, "export", "--run_dir", tmp_path / "no_run", says=["no such checkpoint"])
    assert_fails(tmp_path, "export", "--run_dir", run, "--format", "h5", says=["invalid choice"])
    (run / "export_onnx").mkdir()
    (run / "export_onnx/mine.txt").write_text("keep me")
    assert_fails(tmp_path, "export", "--run_dir", run, says=["is there already", "--output"])
    monkeypatch.setattr("scripts.exports.folder.write_graph", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        answer("export", "--run_dir", run, "--output", tmp_path / "new")
    assert not list(tmp_path.glob("*new*"))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert_fails(tmp_path, "export", "--run_dir", run, says=["pip install -e '.[export]'"])


def test_the_last_checkpoint_can_be_chosen_and_its_epoch_is_told(run, tmp_path):
    works("export", "--run_dir", run, "--ckpt_path", "last", "--format", "torch", "--output", tmp_path / "out")
    step = load_checkpoint(run / "checkpoints/last.ckpt")["global_step"]
    assert f"after {step} optimizer steps" in (tmp_path / "out/README.md").read_text("utf-8")
