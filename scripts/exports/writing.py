"""Graphs as files of torch.export or ONNX, each held against its module."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch

from datamodules.errors import DataError
from scripts.exports.graphs import Graph

Format = Literal["torch", "onnx"]
TOLERANCE = 1e-4  # absolute, and relative to the module's own value: of log-probabilities, percent, states
ENDINGS: dict[str, str] = {"torch": "pt2", "onnx": "onnx"}


def need_packages(kind: Format) -> None:
    """Refuse ONNX where its packages are missing.

    Raises:
        DataError: says how to install them.
    """
    if kind == "onnx":
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ModuleNotFoundError as error:
            raise DataError(f"no package {error.name}; install it: pip install -e '.[export]'") from None


def write_graph(graph: Graph, kind: Format, path: Path) -> float:
    """Write a graph and compare it with its module on inputs of other sizes; the largest difference found.

    Raises:
        DataError: the network has no file of this kind, or the file says something else than the module.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of the exporters, about themselves
        graph.module.eval()  # an exporter sets all parts back to the mode of the whole
        if graph.recurrent:
            _write_recurrent(graph, kind, path)
        else:
            sizes = tuple(graph.dynamic[name] for name in graph.inputs)
            program = torch.export.export(
                graph.module, tuple(graph.inputs.values()), dynamic_shapes=sizes,
                prefer_deferred_runtime_asserts_over_guards="mask" in graph.inputs,  # else strided frames are refused
            )  # fmt: skip
            if kind == "torch":
                torch.export.save(program, path)
            else:
                written: Any = torch.onnx.export(
                    program, dynamo=True, verbose=False, output_names=graph.outputs, dynamic_shapes=sizes
                )
                written.save(path)
        return _compare(graph, kind, path)


def _write_recurrent(graph: Graph, kind: Format, path: Path) -> None:
    """ONNX has loops over time, but only the older exporter writes them."""
    if kind == "torch":
        raise DataError(
            "a recurrent network is not exported to torch: torch.export writes a fixed length; use --format onnx"
        )
    names = {name: {i: dim.__name__ for i, dim in sizes.items()} for name, sizes in graph.dynamic.items()}
    torch.onnx.export(
        graph.module, tuple(graph.inputs.values()), path, dynamo=False,
        input_names=list(graph.inputs), output_names=graph.outputs, dynamic_axes=names,
    )  # fmt: skip


def load_graph(kind: Format, path: Path) -> Callable[[dict[str, torch.Tensor]], list[torch.Tensor]]:
    """A written graph as a function."""
    if kind == "torch":
        program = torch.export.load(path).module()

        def run(inputs: dict[str, torch.Tensor]) -> list[torch.Tensor]:
            found = program(*inputs.values())
            return [found] if isinstance(found, torch.Tensor) else list(found)

        return run
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    takes = {one.name for one in session.get_inputs()}  # what no output depends on is left out of the file
    return lambda inputs: [
        torch.from_numpy(value)
        for value in session.run(None, {name: value.numpy() for name, value in inputs.items() if name in takes})
    ]


def _compare(graph: Graph, kind: Format, path: Path) -> float:
    run, largest = load_graph(kind, path), 0.0
    for inputs in (graph.inputs, graph.others):
        expected: Any = graph.module(**inputs)
        expected = [expected] if isinstance(expected, torch.Tensor) else list(expected)
        for name, a, b in zip(graph.outputs, expected, run(inputs), strict=True):
            if not torch.allclose(a, b, TOLERANCE, TOLERANCE):
                raise DataError(
                    f"{path.name}: {name} differs from the network's by up to {(a - b).abs().max():.2g}, more than "
                    f"{TOLERANCE:g}; try the other --format"
                )
            largest = max([largest, *(a - b).abs().flatten().tolist()])
    return largest
