"""Counts what a training step does: products, memory traffic, kernels that are started, what is saved for backward.

A step is made on the CPU with two small batches. All operations depend on the number of rows in a straight line, as
lengths and widths stay what they are, so that two batches tell what a step of any size does.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, reduce
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from callbacks.memory import SavedForBackward, lasting
from modules.base import HomeworkModule

aten = torch.ops.aten
HALF = (torch.float16, torch.bfloat16)
WITHOUT_KERNEL = {
    aten.detach, aten.alias, aten.lift_fresh, aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty,
    aten.new_empty_strided, aten._unsafe_view, aten.is_same_size, aten._local_scalar_dense,
}  # fmt: skip
OF_A_TIME_STEP = 6  # kernels of a recurrent layer: a product and its gates, as many again twice in backward


class Operation(NamedTuple):
    """One operation of a step."""

    name: str
    flops: float
    traffic: float
    """Bytes read and written."""
    half: bool
    """Whether it computes in 16 bits."""


class Step(NamedTuple):
    """What an optimizer step of one batch does and needs."""

    forward: list[Operation]
    backward: list[Operation]
    update: list[Operation]
    """Clipping and the optimizer."""
    waiting: int
    """Further small kernels, of the time steps of recurrent layers."""
    parameters: int
    lasting: dict[str, float]
    """Bytes by what they are for: weights, gradients, optimizer."""
    saved: float
    """Bytes saved for backward."""


class Operations(TorchDispatchMode):
    """Notes every operation that starts a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Operation] = []

    def taken(self) -> list[Operation]:
        """What was noted since the last call."""
        found, self.seen = self.seen, []
        return found

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        packet = func._overloadpacket
        if not func.is_view and packet not in WITHOUT_KERNEL:
            count = flop_registry.get(packet)
            flops = count(*args, **kwargs, out_val=out) if count is not None else 0
            results = [t for t in tree_iter(out) if isinstance(t, Tensor)]
            tensors = [*(t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)), *results]
            traffic = sum(t.numel() * t.element_size() for t in tensors)
            self.seen.append(Operation(str(packet), flops, traffic, any(t.dtype in HALF for t in results)))
        return out


def recurrent_stand_in(layer: nn.RNNBase, steps: list[int], x: Any, hidden: Any = None) -> Any:
    """As many products and as much memory as a recurrent layer, but all time steps at once, as cuDNN has few kernels.

    Args:
        layer: An LSTM or GRU, batch first.
        steps: Takes the number of time steps of each direction.
        x: (B, T, D), or a packed sequence.
        hidden: The state to begin with; nothing is made of it.
    """
    data = x.data if isinstance(x, PackedSequence) else x
    rows, times = (int(x.batch_sizes[0]), len(x.batch_sizes)) if isinstance(x, PackedSequence) else x.shape[:2]
    directions = 2 if layer.bidirectional else 1
    for number in range(layer.num_layers):
        out = []
        for direction in range(directions):
            first, second, *biases = layer.all_weights[number * directions + direction]
            gates = data @ first.T + sum(biases)
            gates = torch.sigmoid(gates + torch.tanh(gates[..., : layer.hidden_size]) @ second.T)
            out.append(reduce(torch.mul, gates.chunk(len(first) // layer.hidden_size, -1)))
            steps.append(times)
        data = torch.cat(out, -1) if directions > 1 else out[0]
    state = data.new_zeros(layer.num_layers * directions, rows, layer.hidden_size)
    packed = x._replace(data=data) if isinstance(x, PackedSequence) else data
    return packed, (state, state) if isinstance(layer, nn.LSTM) else state


@contextmanager
def _alone(module: HomeworkModule, steps: list[int]) -> Iterator[None]:
    """Let a module take training steps without a trainer."""
    trainer = SimpleNamespace(world_size=1, accumulate_grad_batches=1, global_step=0, log_every_n_steps=100)
    quiet: Callable[..., None] = lambda *args, **kwargs: None  # noqa: E731
    quiet_text: Any = lambda tokens: "a word"  # noqa: E731
    recurrent = [part for part in module.modules() if isinstance(part, nn.RNNBase)]
    for layer in recurrent:
        layer.forward = partial(recurrent_stand_in, layer, steps)
    module._trainer = trainer  # type: ignore[assignment]
    module.log = module.log_dict = quiet  # type: ignore[method-assign]
    if hasattr(module, "text"):  # random tokens are no words of the tokenizer
        module.text = quiet_text
    try:
        yield
    finally:
        module._trainer = None
        for layer in recurrent:
            del layer.forward
        for name in {"log", "log_dict", "text"} & vars(module).keys():
            delattr(module, name)


def one_step(
    module: HomeworkModule, batch: dict[str, Any], mixed: bool, clip: float | None, update: bool = True
) -> Step:
    """Make one training step and say what it did.

    Args:
        module: Built.
        batch: What its data would give it.
        mixed: Whether products are computed in 16 bits, as with mixed precision on a GPU.
        clip: Norm that gradients are clipped to, if they are.
        update: Whether the optimizer steps too; it does the same after any batch, and its state needs most memory.
    """
    steps: list[int] = []
    module.train()
    module.zero_grad(set_to_none=True)
    mode = Operations()
    with _alone(module, steps):
        optimizer: Any = module.optimizer_of(module)
        watch = SavedForBackward(module)
        with mode, watch, torch.autocast("cpu", torch.bfloat16, mixed):
            loss: Any = module.training_step(batch, 0)
        forward = mode.taken()
        with mode:
            loss.backward()
        backward = mode.taken()
        if update:
            optimizer.step()  # makes its state, which later steps do not
            with mode:
                if clip:
                    nn.utils.clip_grad_norm_(module.parameters(), clip)
                optimizer.step()
    kept = {name: float(count) for name, count in lasting(module, [optimizer]).items()}
    parameters = sum(p.numel() for p in module.parameters())
    module.zero_grad(set_to_none=True)
    return Step(forward, backward, mode.taken(), OF_A_TIME_STEP * sum(steps), parameters, kept, float(watch.bytes))


def grown(few: Step, more: Step, rows: tuple[int, int], wanted: float) -> Step:
    """What a step with `wanted` rows does, from those of two small batches; updated is after the larger one.

    Where the two did other operations (outputs that are drawn have random lengths), the larger one is multiplied.

    Args:
        few, more: Steps of the same module.
        rows: Of the two.
        wanted: Rows of the step in question.
    """
    share = (wanted - rows[0]) / (rows[1] - rows[0])

    def line(a: float, b: float) -> float:
        return max(0.0, a + share * (b - a))

    def lines(a: list[Operation], b: list[Operation]) -> list[Operation]:
        if [o.name for o in a] != [o.name for o in b]:
            times = wanted / rows[1]
            return [o._replace(flops=o.flops * times, traffic=o.traffic * times) for o in b]
        return [
            y._replace(flops=line(x.flops, y.flops), traffic=line(x.traffic, y.traffic))
            for x, y in zip(a, b, strict=True)
        ]

    return more._replace(
        forward=lines(few.forward, more.forward),
        backward=lines(few.backward, more.backward),
        saved=line(few.saved, more.saved),
    )
