"""The folder that `leeml export` leaves: graphs, facts.json, example.py with what it imports, README.md."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from datamodules.files.places import PROJECT
from datamodules.speech.audio import FLOOR, HIGHEST, HOP, LOWEST, RATE, WINDOW
from modules.hw2_phoneme import SHARPNESS
from scripts.exports.card import card
from scripts.exports.graphs import Graph, graphs_of
from scripts.exports.writing import ENDINGS, Format, write_graph

SHIPPED = Path(__file__).parent / "shipped"
PACKAGES = {
    "hw1_covid": [],
    "hw2_phoneme": ["kaldi-native-fbank", "soundfile"],
    "hw3_food": ["pillow"],
    "hw4_speaker": ["soundfile"],
    "hw5_translation": ["sentencepiece"],
}
"""What an example needs besides numpy and what runs the graphs."""
TEXT = (Path("datamodules/text/cleaning.py"), Path("modules/translation/detokenize.py"))  # they import nothing of ours


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """The data's settings in a run's configuration."""
    return dict(config["data"].get("init_args") or {})


def facts_of(module: Any, settings: dict[str, Any], graphs: Sequence[Graph]) -> dict[str, Any]:
    """What a program must know besides the graphs, as JSON has it: names, special tokens, how inputs are made."""
    facts: dict[str, Any] = module.facts
    found: dict[str, Any] = {
        "homework": module.homework,
        "graphs": {graph.name: {"inputs": list(graph.inputs), "outputs": graph.outputs} for graph in graphs},
    }
    if module.homework == "hw1_covid":
        return found | {"features": facts["features"]}
    if module.homework == "hw5_translation":
        encoder = set(graphs[0].outputs)
        state = [name for name in graphs[0].outputs if f"new_{name}" in graphs[1].outputs]
        return found | {
            **{name: facts[name] for name in ("source", "target", "pad", "bos", "eos", "vocabulary", "max_length")},
            "longest": module.net.max_length,
            "memory": [name for name in graphs[0].outputs if name in encoder - set(state)],
            "state": state,
        }
    found["classes"] = facts["classes"]
    if module.homework == "hw3_food":
        return found | {"image_size": settings["image_size"], "resized": "bilinear, squashed to a square; RGB, uint8"}
    if module.homework == "hw4_speaker":
        kind = {"kind": "natural log of mel power", "window": WINDOW, "hop": HOP, "lowest": LOWEST, "highest": HIGHEST}
        return found | {"features": facts["features"], "rate": RATE, "floor": FLOOR, **kind}
    return found | {
        "features": facts["features"], "rate": RATE, "window": facts["window"],
        "kind": "Kaldi's 13 MFCC with two deltas, each normalised over the utterance; mirrored ends, no dither",
        "transitions": module.followers().tolist(),
        "throats": module.throats().tolist(), "sharpness": SHARPNESS,
    }  # fmt: skip


def write_folder(module: Any, checkpoint: dict[str, Any], kind: Format, run: Path, folder: Path) -> float:
    """Write all files into an empty folder.

    Args:
        module: In evaluation mode, with its facts.
        checkpoint: That it was read from.
        kind: Of the graphs.
        run: Its folder, for the card.
        folder: Where to.

    Returns:
        The largest difference between what a graph and its module say.

    Raises:
        DataError: a network that is not exported, or a graph that says something else than its module.
    """
    settings = settings_of(checkpoint["config"])
    torch.manual_seed(0)  # of the inputs that are compared
    graphs = graphs_of(module, settings)
    largest = max(write_graph(graph, kind, folder / f"{graph.name}.{ENDINGS[kind]}") for graph in graphs)
    facts = facts_of(module, settings, graphs)
    (folder / "facts.json").write_text(json.dumps(facts, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    shutil.copyfile(SHIPPED / f"{module.homework}.py", folder / "example.py")
    shutil.copyfile(SHIPPED / f"runtime_{kind}.py", folder / "runtime.py")
    if module.homework == "hw5_translation":
        (folder / "tokenizer.model").write_bytes(module.facts["tokenizer"].numpy().tobytes())
        for path in TEXT:
            shutil.copyfile(PROJECT / path, folder / path.name)
    needs = [{"onnx": "onnxruntime", "torch": "torch"}[kind], "numpy", *PACKAGES[module.homework]]
    text = card(module, checkpoint, run, graphs, largest, needs, ENDINGS[kind])
    (folder / "README.md").write_text(text, encoding="utf-8")
    return largest
