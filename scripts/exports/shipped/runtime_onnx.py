"""Runs the ONNX files of this folder: NumPy arrays in, by name, NumPy arrays out."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime

HERE = Path(__file__).parent


def load(name: str) -> Callable[..., dict[str, np.ndarray]]:
    """A graph as a function, such as load("model")(x=x)["percent"]."""
    session = onnxruntime.InferenceSession(HERE / f"{name}.onnx", providers=onnxruntime.get_available_providers())
    takes = [one.name for one in session.get_inputs()]
    gives = [one.name for one in session.get_outputs()]

    def run(**inputs: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(gives, session.run(None, {part: inputs[part] for part in takes}), strict=True))

    return run
