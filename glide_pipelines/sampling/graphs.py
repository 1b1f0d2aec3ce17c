"""CUDA graphs: a UNet's pass is captured once for its shapes, and from then on replayed with one launch.

A pass launches more than a thousand kernels. At small batches a fast GPU waits for launches, not for the arithmetic.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeVar

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

from ..models import GLIDEUNet2DConditionModel
from ..models.fused import FusedUNet


logger = logging.getLogger(__name__)

# The first passes choose algorithms and allocate workspaces, which must not happen while a graph is captured.
WARM_UPS = 2
TEXT = "encoder_hidden_states"
# Where accelerate and diffusers keep what they do around a module's pass.
_HOOKS = {"_hf_hook", "_diffusers_hook"}
# PyTorch captures one graph at a time in a process.
_CAPTURE_LOCK = threading.Lock()


# A tensor or a list of them.
_Output = TypeVar("_Output", torch.Tensor, list[torch.Tensor])
Replay = Callable[[], None]


class Recorder(Protocol):
    """What can capture a function over fixed tensors, and replay it."""

    device_type: str

    def capture(self, function: Callable[[], _Output], device: torch.device) -> tuple[_Output, Replay]:
        """Run and record a function without arguments: its output, which each replay writes again, and the replay."""
        ...

    def take_turn(self, device: torch.device) -> None:
        """Called before inputs are written and a recording is replayed, by one thread at a time."""
        ...


class CUDARecorder:
    """Captures with `torch.cuda.CUDAGraph`."""

    device_type = "cuda"

    def __init__(self) -> None:
        # The graphs of a device share their memory: they run one after the other, and no output stays in it.
        self._pools: dict[torch.device, Any] = {}
        self._last_streams: dict[torch.device, torch.cuda.Stream] = {}

    def capture(self, function: Callable[[], _Output], device: torch.device) -> tuple[_Output, Replay]:
        """See [`Recorder.capture`]."""
        with _CAPTURE_LOCK, torch.cuda.device(device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    function()
            torch.cuda.current_stream().wait_stream(stream)
            pool = self._pools.setdefault(device, torch.cuda.graph_pool_handle())
            graph = torch.cuda.CUDAGraph()
            # "thread_local": other threads may go on using the device.
            with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
                output = function()
        return output, graph.replay

    def take_turn(self, device: torch.device) -> None:
        """Let the current stream wait for the one that replayed last."""
        stream = torch.cuda.current_stream(device)
        last = self._last_streams.get(device)
        if last is not None and last != stream:
            stream.wait_stream(last)
        self._last_streams[device] = stream


class CUDAGraphs:
    """The captured passes of UNets. Threads may share them: passes take turns.

    A pass is captured anew where its inputs have other shapes or dtypes, where the weights lie elsewhere (after `to`,
    or with another LoRA), and where a LoRA has another scale. Weights that change in place are seen without that.

    Args:
        max_graphs (`int`, defaults to 8): Graphs to keep; beyond that the one that was not used for longest is dropped.
        recorder (`Recorder`, *optional*): What captures; [`CUDARecorder`] by default.
    """

    def __init__(self, max_graphs: int = 8, recorder: Recorder | None = None) -> None:
        self.max_graphs = max_graphs
        self._recorder = CUDARecorder() if recorder is None else recorder
        # None for a pass that could not be captured.
        self._graphs: OrderedDict[Hashable, _Graph | None] = OrderedDict()
        self._weights: weakref.WeakKeyDictionary[GLIDEUNet2DConditionModel, _Weights] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Graphs that are kept."""
        return sum(graph is not None for graph in self._graphs.values())

    def of(self, unet: GLIDEUNet2DConditionModel) -> GLIDEUNet2DConditionModel | GraphedUNet:
        """What runs the UNet's passes in graphs; where that cannot be, the UNet itself, with a warning."""
        reason = self.obstacle(unet)
        if reason is None:
            return GraphedUNet(unet, self)
        logger.warning(f"A UNet runs without CUDA graphs: {reason}.")
        return unet

    def obstacle(self, unet: GLIDEUNet2DConditionModel) -> str | None:
        """Why a UNet cannot run in graphs; None if it can."""
        if hasattr(unet, "_orig_mod") or getattr(unet, "_compiled_call_impl", None) is not None:
            return 'it is compiled, and runs as compiled (`unet.compile(mode="reduce-overhead")` makes its own graphs)'
        if any(not _HOOKS.isdisjoint(module.__dict__) for module in unet.modules()):
            return "hooks move or cast its weights while it runs (offloading, a device map, layerwise casting)"
        if unet.device.type != self._recorder.device_type:
            return f"it is on the device {str(unet.device)!r}, where it runs as usual"
        return None

    def run(
        self,
        unet: GLIDEUNet2DConditionModel,
        inputs: dict[str, torch.Tensor],
        cross_attention_kwargs: dict[str, Any] | None = None,
        owner: object = None,
    ) -> torch.Tensor:
        """A pass of the UNet, captured if it is a new one; the output belongs to the caller.

        It runs without a graph while gradients are recorded, and where `cross_attention_kwargs` hold more than `scale`.
        What a pass computes from the text alone is computed once for an `owner`, as long as the text does not change.
        """
        if torch.is_grad_enabled() or set(cross_attention_kwargs or {}) - {"scale"}:
            return unet(**inputs, cross_attention_kwargs=cross_attention_kwargs).sample
        with self._lock:
            key = self._key(unet, inputs, cross_attention_kwargs)
            if key not in self._graphs:
                self._graphs[key] = self._capture(unet, inputs, cross_attention_kwargs)
            self._graphs.move_to_end(key)
            while len(self._graphs) > self.max_graphs:
                self._graphs.popitem(last=False)
            graph = self._graphs[key]
            if graph is not None:
                self._recorder.take_turn(unet.device)
                return graph.replay(inputs, owner)
        return unet(**inputs, cross_attention_kwargs=cross_attention_kwargs).sample

    def _key(
        self,
        unet: GLIDEUNet2DConditionModel,
        inputs: dict[str, torch.Tensor],
        cross_attention_kwargs: dict[str, Any] | None,
    ) -> Hashable:
        """All that a captured pass depends on and does not read anew from the same place."""
        shapes = tuple((name, value.shape, value.dtype) for name, value in inputs.items())
        device = unet.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        scale = (cross_attention_kwargs or {}).get("scale")
        weights = self._weights.get(unet)
        if weights is None or not weights.are_where_they_were():
            weights = self._weights[unet] = _Weights(unet)
        return weakref.ref(unet), unet.training, shapes, autocast, scale, weights.state

    def _capture(
        self,
        unet: GLIDEUNet2DConditionModel,
        inputs: dict[str, torch.Tensor],
        cross_attention_kwargs: dict[str, Any] | None,
    ) -> _Graph | None:
        # Tensors of inference mode could not be written to outside of it.
        with torch.inference_mode(False), torch.no_grad():
            buffers = {name: torch.empty_like(value, device=unet.device) for name, value in inputs.items()}
            for name, value in inputs.items():
                buffers[name].copy_(value)
            network = FusedUNet(unet) if FusedUNet.fits(unet) else unet

            def prepare() -> list[torch.Tensor]:
                return network.prepare(buffers[TEXT]) if isinstance(network, FusedUNet) else []

            def run() -> torch.Tensor:
                return network(**buffers, cross_attention_kwargs=cross_attention_kwargs).sample

            try:
                prepared, replay_preparation = self._recorder.capture(prepare, unet.device)
                replay_preparation()
                output, replay = self._recorder.capture(run, unet.device)
            except RuntimeError as error:  # among them torch.OutOfMemoryError
                reason = " ".join(str(error).split())
                logger.warning(f"A UNet runs without CUDA graphs, since its pass cannot be captured: {reason}")
                return None
        return _Graph(buffers, prepared, output, replay_preparation, replay)


class GraphedUNet:
    """A UNet whose passes are replayed by [`CUDAGraphs`]; it is called as the UNet is.

    Args:
        unet ([`GLIDEUNet2DConditionModel`]): The UNet.
        graphs ([`CUDAGraphs`]): Where its graphs are kept.
    """

    def __init__(self, unet: GLIDEUNet2DConditionModel, graphs: CUDAGraphs) -> None:
        self.unet = unet
        self.graphs = graphs

    @property
    def config(self) -> Any:
        """Of the UNet."""
        return self.unet.config

    @property
    def dtype(self) -> torch.dtype:
        """Of the UNet."""
        return self.unet.dtype

    def __call__(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        cross_attention_kwargs: dict[str, Any] | None = None,
        **inputs: torch.Tensor,
    ) -> UNet2DConditionOutput:
        """As the UNet's own `forward`, for tensors only. No gradient flows through a graph."""
        inputs = {"sample": sample, "timestep": timestep, **inputs}
        return UNet2DConditionOutput(self.graphs.run(self.unet, inputs, cross_attention_kwargs, self))


class _Graph:
    """A captured pass: the tensors that it reads, the one that it writes, and its replay."""

    def __init__(
        self,
        buffers: dict[str, torch.Tensor],
        prepared: list[torch.Tensor],
        output: torch.Tensor,
        replay_preparation: Replay,
        replay: Replay,
    ) -> None:
        self._buffers = buffers
        self._prepared = prepared  # so that nothing else is put into their memory
        self._output = output
        self._replay_preparation = replay_preparation
        self._replay = replay
        self._written: dict[str, tuple[torch.Tensor, int]] = {}
        self._owner: Any = None

    def replay(self, inputs: dict[str, torch.Tensor], owner: object) -> torch.Tensor:
        is_prepared = self._owner is not None and self._owner() is owner
        for name, value in inputs.items():
            # Text and conditions stay as they are for a whole run. (Tensors of inference mode have no version.)
            version = -1 if value.is_inference() else value._version
            written, written_version = self._written.get(name, (None, -1))
            if written is not value or version < 0 or version != written_version:
                self._buffers[name].copy_(value)
                self._written[name] = value, version
                is_prepared = is_prepared and name != TEXT
        if not is_prepared:
            self._replay_preparation()
            self._owner = None if owner is None else weakref.ref(owner)
        self._replay()
        return self._output.clone()


class _Weights:
    """Watches a UNet's weights and LoRA. Where two of its states are equal, one graph serves both."""

    def __init__(self, unet: GLIDEUNet2DConditionModel) -> None:
        modules = list(unet.modules())
        self._parts = [part for module in modules for part in (module._modules, module._parameters, module._buffers)]
        self._tensors = [*unet.parameters(), *unet.buffers()]
        self._adapted: list[Any] = [module for module in modules if "scaling" in module.__dict__]  # of a LoRA
        self._seen = self._look()
        self.state = _Hashed((*self._seen[1:], *((tensor.dtype, tensor.stride()) for tensor in self._tensors)))

    def are_where_they_were(self) -> bool:
        """Whether nothing was exchanged since. It is asked at every pass, and must be quick."""
        return self._look() == self._seen

    def _look(self) -> tuple[Hashable, ...]:
        objects = tuple(id(value) for part in self._parts for value in part.values())
        places = tuple(tensor.data_ptr() for tensor in self._tensors)
        adapters = tuple(
            (*module.scaling.items(), *module.active_adapters, module.disable_adapters, *module.merged_adapters)
            for module in self._adapted
        )
        return objects, places, adapters


class _Hashed:
    """A large value that is hashed once."""

    def __init__(self, value: Hashable) -> None:
        self._value = value
        self._hash = hash(value)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashed) and (self is other or self._value == other._value)
