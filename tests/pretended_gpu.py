"""A GPU for machines without one: tensors that say cuda:0 and compute on the CPU, and a record of what a GPU would do.

Within `PretendedGPU` whatever is made on, or moved to, "cuda" is a `DeviceTensor`. Every operation on one is looked at:

* faults: tensors of both devices in one operation, batch sizes where CUDA does not take them, types that differ under
  autocast, recurrent layers that cuDNN would run in float16;
* waits: the host waits until the device has caught up (.item(), .tolist(), nonzero, boolean indexing, and copies either
  way that are not non_blocking, such as torch.tensor(..., device="cuda"));
* launches: kernels started. Attention, recurrent layers and operations on lists of tensors count as one each.

Autocast follows the lists in torch's documentation, by the names of Python calls. What it cannot show: errors inside
CUDA's kernels, memory, streams, time.
"""

import contextlib
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from lightning.pytorch.accelerators import CUDAAccelerator
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

PROJECT = str(Path(__file__).resolve().parent.parent)
CUDA = torch.device("cuda", 0)
HALF = (torch.float16, torch.bfloat16)
aten = torch.ops.aten

WAITS = {
    aten._local_scalar_dense: "item()",
    aten.is_nonzero: "bool()",
    aten.nonzero: "nonzero()",
    aten.masked_select: "masked_select()",
    aten.equal: "equal()",
    aten._unique2: "unique()",
    aten.unique_consecutive: "unique_consecutive()",
    aten.bincount: "bincount()",
}
WITHOUT_KERNEL = {
    aten.detach, aten.alias, aten.lift_fresh, aten.empty, aten.empty_like, aten.empty_strided, aten.new_empty,
    aten.new_empty_strided, aten._unsafe_view, aten.is_same_size, aten.set_, aten._local_scalar_dense,
}  # fmt: skip
ON_BOTH = {aten._pack_padded_sequence, aten._pad_packed_sequence, aten.lift_fresh, aten.copy_, aten._to_copy}

# https://docs.pytorch.org/docs/stable/amp.html, "CUDA Ops that can autocast to float16", "to float32", "to the widest"
LOWER = """addbmm addmm addmv addr baddbmm bmm chain_matmul conv1d conv2d conv3d conv_transpose1d conv_transpose2d
einsum __matmul__ __rmatmul__ conv_transpose3d linear matmul mm multi_dot mv prelu"""
FLOAT = """__pow__ __rpow__ acos asin cdist cosh cosine_embedding_loss cosine_similarity cross_entropy cumprod cumsum
dist erfinv exp expm1 group_norm hinge_embedding_loss kl_div l1_loss layer_norm log log10 log1p log2 log_softmax
logsumexp mse_loss nll_loss norm normalize pow prod reciprocal renorm rms_norm rsqrt sinh smooth_l1_loss softmax softmin
softplus
sum tan vector_norm binary_cross_entropy_with_logits"""
WIDEST = "addcdiv addcmul atan2 bilinear cat cross dot grid_sample index_put scatter_add stack tensordot"
TO_LOWER, TO_FLOAT, TO_WIDEST = (frozenset(names.split()) for names in (LOWER, FLOAT, WIDEST))


def held(value: Any) -> Any:
    """The CPU tensor of a DeviceTensor; anything else as it is."""
    return value.held if isinstance(value, DeviceTensor) else value


def on_device(value: Any) -> Any:
    """A CPU tensor as a DeviceTensor; anything else as it is."""
    return DeviceTensor(value) if isinstance(value, Tensor) and not isinstance(value, DeviceTensor) else value


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type in ("cuda", "meta")  # to C++ a DeviceTensor is on "meta"


def place() -> str:
    """file:line of the nearest of the project's own frames, else of the library that called."""
    frame, other = sys._getframe(1), ""
    while frame is not None:
        name = frame.f_code.co_filename
        if name.startswith(PROJECT) and name != __file__ and "site-packages" not in name:
            return f"{name[len(PROJECT) + 1 :]}:{frame.f_lineno}"
        if not other and any(part in name for part in ("/lightning/", "/torchmetrics/", "/optim/", "/amp/")):
            other = f"{name.rpartition('site-packages/')[2]}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return other or "unknown"


class DeviceTensor(Tensor):
    """Says that it is on cuda:0; `held` is the CPU tensor with its numbers."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "DeviceTensor":
        tensor = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="meta",
        )
        tensor.held = held
        return tensor

    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_meta = is_cpu = property(lambda self: False)  # type: ignore[assignment]

    def __repr__(self, **kwargs: Any) -> str:
        return f"DeviceTensor({self.held!r})"

    def __format__(self, spec: str) -> str:
        return format(self.item() if self.ndim == 0 else repr(self), spec)

    def __deepcopy__(self, memo: dict[int, Any]) -> "DeviceTensor":
        if id(self) not in memo:
            copy = DeviceTensor(self.held.detach().clone()).requires_grad_(self.requires_grad)
            if getattr(self, "_is_param", False):
                copy._is_param = True  # type: ignore[attr-defined]
            memo[id(self)] = copy
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.held.detach().clone().__reduce_ex__(protocol)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        gpu = PretendedGPU.active
        if gpu is not None:
            name = getattr(func, "__name__", "")
            if name in gpu.calls:
                return gpu.calls[name](*args, **kwargs)
            if func is Tensor.data.__get__:
                return args[0].detach()
            if func is Tensor.data.__set__ and isinstance(args[0], DeviceTensor):
                args[0].held = held(args[1])
                return None
            if torch.is_autocast_enabled("cuda"):
                args, kwargs = gpu.autocast(name, args, kwargs)
        with torch._C.DisableTorchFunctionSubclass():  # the default would make DeviceTensors of results on the CPU
            return func(*args, **kwargs)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if PretendedGPU.active is None:
            raise RuntimeError(f"{func} on a DeviceTensor outside of PretendedGPU")
        return PretendedGPU.active.run(func, args, kwargs or {})


class _Recomputed(torch.autograd.Function):
    """One kernel forwards, one backwards: a function of CPU tensors whose gradient is found by running it again."""

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Any], dtype: torch.dtype, *tensors: Tensor) -> Any:
        ctx.function = function
        ctx.inputs = [held(t).detach() for t in tensors]
        out = function(*(t.float() for t in ctx.inputs))
        return tuple(DeviceTensor(o.to(dtype)) for o in out)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        assert PretendedGPU.active is not None
        PretendedGPU.active.launch("backward")
        with torch.enable_grad():
            inputs = [t.float().requires_grad_() for t in ctx.inputs]
            out = ctx.function(*inputs)
        pairs = [(o, held(g).float()) for o, g in zip(out, grads, strict=True) if g is not None]
        found = torch.autograd.grad([o for o, _ in pairs], inputs, [g for _, g in pairs], allow_unused=True)
        back = [None if g is None else DeviceTensor(g.to(t.dtype)) for g, t in zip(found, ctx.inputs, strict=True)]
        return (None, None, *back)


class PretendedGPU(TorchDispatchMode):
    """A context in which torch and Lightning find one GPU; see the module's docstring for what it records."""

    active: "PretendedGPU | None" = None

    def __init__(self) -> None:
        super().__init__()
        self.phase = "setup"
        self.faults: Counter[str] = Counter()
        self.waits: defaultdict[str, Counter[str]] = defaultdict(Counter)
        """By phase: what and where -> how often."""
        self.launches: defaultdict[str, Counter[str]] = defaultdict(Counter)
        """By phase: kernel -> how often."""
        self.calls: dict[str, Callable[..., Any]] = {
            "scaled_dot_product_attention": self._attention,
            "dropout": self._dropout,
            "gru": lambda *args: self._recurrent("gru", *args),
            "lstm": lambda *args: self._recurrent("lstm", *args),
            "ctc_loss": self._ctc_loss,
            "tolist": self._tolist,
            "__getitem__": self._indexed,
            "__setitem__": self._set,
            "numpy": lambda tensor, *_, **__: self._refuse("numpy() of a tensor on the device"),
            "pin_memory": lambda tensor, *_: tensor,
            "record_stream": lambda *_: None,
            "data_ptr": lambda tensor: tensor.held.data_ptr(),
        }

    # what is recorded

    def fault(self, what: str) -> None:
        self.faults[f"{what} at {place()}"] += 1

    def wait(self, what: str) -> None:
        self.waits[self.phase][f"{what} at {place()}"] += 1

    def launch(self, kernel: str) -> None:
        self.launches[self.phase][kernel] += 1

    def _refuse(self, what: str) -> None:
        self.fault(what)
        raise TypeError(f"{what} at {place()}")

    # calls that are one kernel, or that wait

    def _tolist(self, tensor: DeviceTensor) -> Any:
        self.wait("tolist()")
        return tensor.held.tolist()

    @staticmethod
    def _numbers(index: Any) -> Any:
        """Lists of numbers as tensors: torch would make them on the device that C++ sees."""
        if isinstance(index, list):
            return torch.tensor(index)
        return tuple(map(PretendedGPU._numbers, index)) if isinstance(index, tuple) else index

    def _indexed(self, tensor: Tensor, index: Any) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            return tensor[self._numbers(index)]

    def _set(self, tensor: Tensor, index: Any, value: Any) -> None:
        with torch._C.DisableTorchFunctionSubclass():
            tensor[self._numbers(index)] = value

    def _ctc_loss(self, logs: Tensor, targets: Tensor, counts: Tensor, sizes: Tensor, *rest: Any, **kw: Any) -> Tensor:
        for lengths in (counts, sizes):
            if isinstance(lengths, DeviceTensor):
                self.wait("ctc_loss with lengths on the device")
        self.launch("ctc_loss")
        rows = [held(t) for t in (targets, counts, sizes)]
        names = ("blank", "reduction", "zero_infinity")
        options = dict(zip(names, rest, strict=False)) | kw
        if logs.dtype in HALF:
            self.fault("ctc_loss in half precision")
        return _Recomputed.apply(lambda x: (F.ctc_loss(x, *rows, **options),), torch.float32, logs)[0]

    def _attention(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
    ) -> Tensor:
        if torch.is_autocast_enabled("cuda"):
            low = torch.get_autocast_dtype("cuda")
            query, key, value = (t.to(low) for t in (query, key, value))
            if attn_mask is not None and attn_mask.is_floating_point():
                attn_mask = attn_mask.to(low)
        tensors = [query, key, value, *([] if attn_mask is None else [attn_mask])]
        if not all(isinstance(t, DeviceTensor) for t in tensors):
            self.fault("attention between tensors of both devices")
        if len({t.dtype for t in tensors if t.dtype != torch.bool}) > 1:
            self.fault("attention between tensors of different types")
        self.launch("attention")
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            mask = held(attn_mask)

            def attend(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor]:
                return (F.scaled_dot_product_attention(q, k, v, mask, 0.0, is_causal),)

        else:

            def attend(q: Tensor, k: Tensor, v: Tensor, *bias: Tensor) -> tuple[Tensor]:  # type: ignore[misc]
                return (F.scaled_dot_product_attention(q, k, v, *(bias or [None]), 0.0, is_causal),)

        inputs = tensors[:3] if attn_mask is not None and attn_mask.dtype == torch.bool else tensors
        return _Recomputed.apply(attend, query.dtype, *inputs)[0]

    @staticmethod
    def _dropout(tensor: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        """CUDA has one kernel for it, and one for its gradient; to C++ these tensors are on another device."""
        return torch.native_dropout(tensor, p, training)[0] if training else tensor

    def _recurrent(self, kind: str, data: Tensor, second: Any, *rest: Any) -> Any:
        """torch.gru(data, hx, weights, ...) or, with packed data, torch.gru(data, batch_sizes, hx, weights, ...)."""
        sizes = None
        if isinstance(rest[0], Tensor | tuple) or (isinstance(rest[0], list) and isinstance(rest[1], list)):
            sizes, (hidden, weights, *options) = second, rest
            if isinstance(sizes, DeviceTensor):
                self.fault("batch sizes of a packed sequence on the device")
        else:
            hidden, (weights, *options) = second, rest
        states = [hidden] if isinstance(hidden, Tensor) else list(hidden)
        if torch.is_autocast_enabled("cuda"):
            self.fault("cuDNN runs this recurrent layer in float16, as autocast is on")
        if len({t.dtype for t in (data, *states, *weights)}) > 1:
            self.fault("recurrent layer with tensors of different types")
        self.launch(kind)
        function = getattr(torch._VF, kind)  # type: ignore[attr-defined]

        def run(x: Tensor, *tensors: Tensor) -> Any:
            first: Any = list(tensors[: len(states)])
            start = first if kind == "lstm" else first[0]
            parts = (start, list(tensors[len(states) :]))
            return function(x, *parts, *options) if sizes is None else function(x, held(sizes), *parts, *options)

        return _Recomputed.apply(run, data.dtype, data, *states, *weights)

    def autocast(self, name: str, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The arguments of a call, in the type that CUDA's autocast gives them."""

        def cast(dtype: torch.dtype) -> tuple[Any, Any]:
            def one(t: Any) -> Any:
                low = isinstance(t, DeviceTensor) and t.dtype in (*HALF, torch.float32) and t.dtype != dtype
                return t.to(dtype) if low else t

            return tree_map(one, args), tree_map(one, kwargs)

        if name in TO_LOWER:
            return cast(torch.get_autocast_dtype("cuda"))
        if name in TO_FLOAT and kwargs.get("dtype") is None:
            return cast(torch.float32)
        tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, DeviceTensor)]
        if name in TO_WIDEST and any(t.dtype == torch.float32 for t in tensors):
            return cast(torch.float32)
        if name == "binary_cross_entropy":
            self.fault("binary_cross_entropy is refused under autocast")
        return args, kwargs

    # every other operation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The operation on the CPU tensors, after a look at where its tensors are."""
        packet = func.overloadpacket
        tensors = [t for t in tree_iter((args, kwargs)) if isinstance(t, Tensor)]
        ours = [t for t in tensors if isinstance(t, DeviceTensor)]
        wanted = kwargs.get("device")
        if not ours and not _is_cuda(wanted):
            return func(*args, **kwargs)
        stays = True
        if packet is aten._to_copy and wanted is not None:
            stays = _is_cuda(wanted)
        if packet is aten.copy_:
            stays = isinstance(args[0], DeviceTensor)
        if packet in (aten._to_copy, aten.copy_) and not kwargs.get("non_blocking") and not (len(args) > 2 and args[2]):
            source = args[0 if packet is aten._to_copy else 1]
            if isinstance(source, DeviceTensor) != stays:
                self.wait("copy to the device" if stays else "copy to the CPU")
        self._look(packet, args, kwargs, tensors)
        out = self._compute(func, tree_map(held, args), tree_map(held, self._on_cpu(kwargs)))
        view = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        # .to("cuda") of what is there already: C++ sees another device, a real one would do nothing
        nothing = (
            packet is aten._to_copy and bool(ours) and kwargs.get("dtype") in (None, ours[0].dtype) and bool(wanted)
        )
        if stays and not view and not nothing and packet not in WITHOUT_KERNEL:
            self.launch(packet.__name__)
        if packet is aten._pack_padded_sequence:
            return on_device(out[0]), out[1]
        return self._same_objects(func, args, kwargs, tree_map(on_device, out)) if stays else out

    def _look(self, packet: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
        """Record waits, and tensors of both devices; a number in a tensor () may come from the CPU, and indices too."""
        if packet in WAITS:
            self.wait(WAITS[packet])
        if packet is aten.repeat_interleave and kwargs.get("output_size") is None:
            self.wait("repeat_interleave() without output_size")
        if packet in (aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_):
            chosen = [i for i in args[1] if isinstance(i, DeviceTensor)]
            if isinstance(args[0], DeviceTensor) and len(chosen) < sum(i is not None for i in args[1]):
                self.wait("indices from the CPU")
            if any(i.dtype in (torch.bool, torch.uint8) for i in chosen):
                self.wait("boolean indexing")
            if not isinstance(args[0], DeviceTensor):
                self.fault("indices on the device for a tensor on the CPU")
        elif packet not in ON_BOTH:
            elsewhere = [t for t in tensors if not isinstance(t, DeviceTensor) and t.ndim]
            if elsewhere:
                self.fault(f"{packet.__name__} between tensors of both devices")
        generator = kwargs.get("generator")
        if isinstance(generator, torch.Generator) and generator.device.type == "cpu":
            self.fault("a generator of the CPU for a tensor on the device")

    @staticmethod
    def _on_cpu(kwargs: Any) -> Any:
        changed = {name: False for name in ("pin_memory", "non_blocking") if kwargs.get(name)}
        return kwargs | changed | ({"device": torch.device("cpu")} if kwargs.get("device") is not None else {})

    @staticmethod
    def _compute(func: Any, args: Any, kwargs: Any) -> Any:
        """The CPU lacks some kernels in half precision that a GPU has."""
        try:
            return func(*args, **kwargs)
        except (RuntimeError, NotImplementedError) as error:
            low = next((t.dtype for t in tree_iter((args, kwargs)) if isinstance(t, Tensor) and t.dtype in HALF), None)
            if low is None or "not implemented for" not in str(error):
                raise

            def to(source: Any, dtype: torch.dtype) -> Callable[[Any], Any]:
                return lambda t: t.to(dtype) if isinstance(t, Tensor) and t.dtype in source else t

            up, down = to(HALF, torch.float32), to((torch.float32,), low)
            return tree_map(down, func(*tree_map(up, args), **tree_map(up, kwargs)))

    @staticmethod
    def _same_objects(func: Any, args: Any, kwargs: Any, out: Any) -> Any:
        """What an operation wrote into is returned as the very object that came in."""
        returns = func._schema.returns
        written = [r.alias_info for r in returns]
        if not any(alias is not None and alias.is_write for alias in written):
            return out
        given = {
            next(iter(a.alias_info.before_set)): args[i] if i < len(args) else kwargs.get(a.name)
            for i, a in enumerate(func._schema.arguments)
            if a.alias_info is not None and a.alias_info.is_write
        }
        results = out if isinstance(out, tuple | list) else [out]
        same = [
            o if alias is None or not alias.is_write else given[next(iter(alias.before_set))]
            for alias, o in zip(written, results, strict=True)
        ]
        return same[0] if len(returns) == 1 else tuple(same)

    # the surroundings

    def __enter__(self) -> "PretendedGPU":
        self._stack = contextlib.ExitStack()
        for change in _changes():
            self._stack.enter_context(change)
        PretendedGPU.active = self
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        PretendedGPU.active = None
        self._stack.close()


@contextlib.contextmanager
def _setting(get: Callable[[], Any], put: Callable[[Any], Any], value: Any) -> Iterator[None]:
    before = get()
    put(value)
    try:
        yield
    finally:
        put(before)


def _changes() -> list[Any]:
    """What else must believe in the device: torch's checks for one, Lightning's accelerator, lists of tensor types."""
    import torch.amp.autocast_mode as autocast_mode
    import torch.amp.grad_scaler as grad_scaler
    import torch.cuda.amp.common as common
    import torch.optim.optimizer as optimizer
    import torch.utils._foreach_utils as foreach

    known = [*foreach._foreach_supported_types, DeviceTensor] if hasattr(foreach, "_foreach_supported_types") else None
    overwrite = torch.__future__
    never: Any = lambda *args, **kwargs: False  # noqa: E731
    nothing: Any = lambda *args, **kwargs: None  # noqa: E731
    foreach_devices: Any = lambda: ["cuda", "meta"]  # noqa: E731
    always: Any = lambda *args, **kwargs: True  # noqa: E731
    ampere: Any = lambda *args: (8, 0)  # noqa: E731
    no_stats: Any = lambda *args: {}  # noqa: E731
    grad_off: Any = lambda mode: torch.no_grad()  # noqa: E731
    changes: list[Any] = [
        torch.autograd.set_multithreading_enabled(False),  # a further thread would be outside of the mode
        _setting(
            overwrite.get_overwrite_module_params_on_conversion,
            overwrite.set_overwrite_module_params_on_conversion,
            True,
        ),
        _setting(torch._C._only_lift_cpu_tensors, torch._C._set_only_lift_cpu_tensors, True),
        torch.backends.cudnn.flags(enabled=False),  # weights of recurrent layers would be laid out for it
        mock.patch.object(torch._C, "_InferenceMode", grad_off),  # wrappers have no version there
        # groups of tensors by device come from C++, for which these are on "meta"
        mock.patch.object(foreach, "_get_foreach_kernels_supported_devices", foreach_devices),
        mock.patch.object(torch.cuda, "_lazy_init", nothing),
        mock.patch.object(torch.cuda, "is_bf16_supported", always),
        mock.patch.object(torch.cuda, "manual_seed", nothing),
        mock.patch.object(torch.cuda, "synchronize", nothing),
        mock.patch.object(torch.cuda, "empty_cache", nothing),
        mock.patch.object(torch.cuda, "get_device_capability", ampere),
        mock.patch.object(CUDAAccelerator, "is_available", staticmethod(lambda: True)),
        mock.patch.object(CUDAAccelerator, "parse_devices", staticmethod(lambda devices: [0])),
        mock.patch.object(CUDAAccelerator, "get_parallel_devices", staticmethod(lambda devices: [CUDA])),
        mock.patch.object(CUDAAccelerator, "auto_device_count", staticmethod(lambda: 1)),
        mock.patch.object(CUDAAccelerator, "setup_device", nothing),
        mock.patch.object(CUDAAccelerator, "setup", nothing),
        mock.patch.object(CUDAAccelerator, "teardown", nothing),
        mock.patch.object(CUDAAccelerator, "get_device_stats", no_stats),
    ]
    for module in (autocast_mode, grad_scaler, common):
        if hasattr(module, "amp_definitely_not_available"):
            changes.append(mock.patch.object(module, "amp_definitely_not_available", never))
    for module in (optimizer, foreach):
        if known is not None and hasattr(module, "_foreach_supported_types"):
            changes.append(mock.patch.object(module, "_foreach_supported_types", known))
    return changes
