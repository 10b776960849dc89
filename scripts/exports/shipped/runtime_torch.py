"""Runs the torch.export files of this folder: NumPy arrays in, by name, NumPy arrays out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

HERE = Path(__file__).parent


def load(name: str) -> Callable[..., dict[str, np.ndarray]]:
    """A graph as a function, such as load("model")(x=x)["percent"]."""
    program = torch.export.load(HERE / f"{name}.pt2").module()
    graph = json.loads((HERE / "facts.json").read_text(encoding="utf-8"))["graphs"][name]

    @torch.no_grad()
    def run(**inputs: np.ndarray) -> dict[str, np.ndarray]:
        found: Any = program(*[torch.from_numpy(inputs[part]) for part in graph["inputs"]])
        found = [found] if isinstance(found, torch.Tensor) else found
        return {part: value.numpy() for part, value in zip(graph["outputs"], found, strict=True)}

    return run
