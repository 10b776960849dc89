"""A small generated corpus and a translator trained on it for a moment, for the verbs that use one."""

from pathlib import Path

from conftest import works

from datamodules.generated import write_translation

EXPERIMENT = """\
model:
  class_path: Translator
  init_args:
    optimizer: {class_path: AdamW, init_args: {lr: 0.01}}
    net:
      class_path: modules.nets.seq2seq.TransformerSeq2Seq
      init_args: {d_model: 32, heads: 2, d_ff: 64, layers: 1, dropout: 0.0, norm: pre}
    beam: 2
data:
  class_path: TranslationData
  init_args: {folds: 10, vocabulary: 400, max_tokens: 2048, max_length: 64, quick: 10}
trainer:
  max_steps: 30
"""
PAIRS, TESTS = 300, 40  # more than a chunk of lines to train on


def write_data(root: Path) -> Path:
    """The sample, cut short, and the experiment beside it."""
    folder = root / "hw5_translation" / "sample"
    write_translation(folder)
    for path in folder.iterdir():
        kept = PAIRS if path.stem == "raw" else TESTS
        path.write_text("".join(path.read_text(encoding="utf-8").splitlines(True)[:kept]), encoding="utf-8")
    (root / "experiment.yaml").write_text(EXPERIMENT)
    return root


def train(root: Path, run: Path, *flags: object) -> Path:
    """A run on it."""
    works("fit", "--config", root / "experiment.yaml", "--data.root", root, "--run_dir", run, *flags)
    return run
