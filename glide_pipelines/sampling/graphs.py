"""CUDA graphs: a network's pass is captured once for its shapes, and from then on replayed with one launch.

A pass launches more than a thousand kernels. At small batches a fast GPU waits for launches, not for the arithmetic.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from ..models import GLIDETextEncoder, GLIDEUNet2DConditionModel
from ..models.fused import FusedUNet


logger = logging.getLogger(__name__)

# The first passes choose algorithms and allocate workspaces, which must not happen while a graph is captured.
WARM_UPS = 2
# In bfloat16 a fused pass differs from the usual one by 0.4 %, under autocast by 2 %; a mistake is larger.
MAX_DIFFERENCE = 0.03
TEXT = "encoder_hidden_states"
# Where accelerate and diffusers keep what they do around a module's pass.
_HOOKS = {"_hf_hook", "_diffusers_hook"}
# PyTorch captures one graph at a time in a process.
_CAPTURE_LOCK = threading.Lock()


# A tensor or a list of them.
_Output = TypeVar("_Output", torch.Tensor, list[torch.Tensor])
Replay = Callable[[], None]
Network = GLIDEUNet2DConditionModel | GLIDETextEncoder
# A network, or what captures it, and its inputs to its output.
Pass = Callable[[Any, dict[str, torch.Tensor]], torch.Tensor]


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
        # And the stream that they are captured on: cuBLAS keeps memory for each that it has seen.
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._last_streams: dict[torch.device, torch.cuda.Stream] = {}

    def capture(self, function: Callable[[], _Output], device: torch.device) -> tuple[_Output, Replay]:
        """See [`Recorder.capture`]."""
        # The current stream is entered once more, so that a capture that fails leaves it the current one.
        with _CAPTURE_LOCK, torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
            stream = self._streams.setdefault(device, torch.cuda.Stream())
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
    """The captured passes of networks. Threads may share them: passes take turns.

    A pass is captured anew where its inputs have other shapes or dtypes, where the weights lie elsewhere (after `to`,
    or with another LoRA), where a LoRA has another scale, and where modules, attention processors or hooks change.
    Weights that change in place are seen without that. All of it counts from the next [`~CUDAGraphs.of`] or
    [`~CUDAGraphs.look_again`] on; a pipeline does the one for each stage that it runs, and the other after callbacks.

    Args:
        max_graphs (`int`, defaults to 8): Graphs to keep; beyond that the one that was not used for longest is dropped.
        recorder (`Recorder`, *optional*): What captures; [`CUDARecorder`] by default.
    """

    def __init__(self, max_graphs: int = 8, recorder: Recorder | None = None) -> None:
        self.max_graphs = max_graphs
        self._recorder = CUDARecorder() if recorder is None else recorder
        # None for a pass that could not be captured.
        self._graphs: OrderedDict[Hashable, _Graph | None] = OrderedDict()
        self._watches: weakref.WeakKeyDictionary[Network, _Watch] = weakref.WeakKeyDictionary()
        self._lock = threading.RLock()
        self.looks = 0

    def __len__(self) -> int:
        """Graphs that are kept."""
        return sum(graph is not None for graph in self._graphs.values())

    def of(self, network: Network) -> Network | GraphedUNet | GraphedTextEncoder:
        """What runs the network's passes in graphs; where that cannot be, the network itself.

        Of a UNet a warning says why; a text encoder runs but once or twice a call.
        """
        if isinstance(network, GLIDETextEncoder):
            return GraphedTextEncoder(network, self) if self.obstacle(network) is None else network
        if not isinstance(network, GLIDEUNet2DConditionModel) and not hasattr(network, "_orig_mod"):
            return network
        reason = self.obstacle(network)
        if reason is None:
            return GraphedUNet(network, self)
        logger.warning(f"A UNet runs without CUDA graphs: {reason}.")
        return network

    def obstacle(self, network: Network) -> str | None:
        """Why a network cannot run in graphs; None if it can."""
        if hasattr(network, "_orig_mod") or getattr(network, "_compiled_call_impl", None) is not None:
            return 'it is compiled, and runs as compiled (`compile(mode="reduce-overhead")` makes its own graphs)'
        if any(not _HOOKS.isdisjoint(module.__dict__) for module in network.modules()):
            return "hooks move or cast its weights while it runs (offloading, a device map, layerwise casting)"
        if network.device.type != self._recorder.device_type:
            return f"it is on the device {str(network.device)!r}, where it runs as usual"
        return None

    def look_again(self) -> None:
        """Have all networks that are in use looked at again before their next passes."""
        self.looks += 1

    def watch(self, network: Network) -> _Watch:
        """What the network is made of at the moment."""
        with self._lock:
            watch = self._watches.get(network)
            if watch is None or not watch.is_unchanged():
                watch = self._watches[network] = _Watch(network)
            return watch

    def run(
        self, graphed: _Graphed, inputs: dict[str, torch.Tensor], compute: Pass, setting: Hashable = None
    ) -> torch.Tensor:
        """A pass of a network, captured if it is a new one; the output belongs to the caller.

        Without a graph while gradients are recorded. What a UNet's pass makes of weights and text alone is made once
        for as long as `graphed` and the text are the same.

        Args:
            graphed (`GraphedUNet` or `GraphedTextEncoder`): The network.
            inputs (`dict[str, torch.Tensor]`): What it is called with.
            compute (`Callable`): What calls it with them, and returns its output.
            setting (`Hashable`, *optional*): What the pass depends on besides.
        """
        network = graphed.network
        if torch.is_grad_enabled():
            return compute(network, inputs)
        with self._lock:
            if graphed.looks != self.looks:
                graphed.look()
            key = self._key(graphed, inputs, setting)
            if key not in self._graphs:
                graphed.look()  # another thread may have changed it: the key must tell what is captured
                key = self._key(graphed, inputs, setting)
            if key not in self._graphs:
                self._recorder.take_turn(network.device)
                self._graphs[key] = self._capture(network, inputs, compute)
            self._graphs.move_to_end(key)
            while len(self._graphs) > self.max_graphs:
                self._graphs.popitem(last=False)
            graph = self._graphs[key]
            if graph is not None:
                self._recorder.take_turn(network.device)
                return graph.replay(inputs, graphed)
        return compute(network, inputs)

    @staticmethod
    def _key(graphed: _Graphed, inputs: dict[str, torch.Tensor], setting: Hashable) -> Hashable:
        """All that a captured pass depends on and does not read anew from the same place."""
        shapes = tuple((name, value.shape, value.dtype) for name, value in inputs.items())
        device = graphed.network.device.type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return weakref.ref(graphed.network), graphed.network.training, shapes, autocast, setting, graphed.watch.state

    def _capture(self, network: Network, inputs: dict[str, torch.Tensor], compute: Pass) -> _Graph | None:
        # Tensors of inference mode could not be written to outside of it. What autocast casts and keeps would be read
        # by a graph after it is gone.
        with torch.inference_mode(False), torch.no_grad(), _no_autocast_cache():
            buffers = {name: torch.empty_like(value, device=network.device) for name, value in inputs.items()}
            for name, value in inputs.items():
                buffers[name].copy_(value)
            captured = _fused(network, buffers, compute)
            prepared: list[torch.Tensor] = []
            prepare: Replay | None = None
            try:
                if isinstance(captured, FusedUNet):
                    prepared, prepare = self._recorder.capture(lambda: captured.prepare(buffers[TEXT]), network.device)
                    prepare()
                output, replay = self._recorder.capture(lambda: compute(captured, buffers), network.device)
            except RuntimeError as error:  # among them torch.OutOfMemoryError
                name, reason = type(network).__name__, " ".join(str(error).split())
                logger.warning(f"A {name} runs without CUDA graphs, since its pass cannot be captured: {reason}")
                return None
        return _Graph(buffers, prepared, prepare, output, replay)


@contextmanager
def _no_autocast_cache() -> Iterator[None]:
    """Without the casts that autocast keeps."""
    before = torch.is_autocast_cache_enabled()
    torch.clear_autocast_cache()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


def _fused(network: Network, inputs: dict[str, torch.Tensor], compute: Pass) -> Network | FusedUNet:
    """What is captured of a network: a UNet's fused pass, if it computes here what the UNet does."""
    if not isinstance(network, GLIDEUNet2DConditionModel) or not FusedUNet.fits(network):
        return network
    try:
        fused = FusedUNet(network)
        fused.prepare(inputs[TEXT])
        # A compiler and any kind of GPU stand behind it: compare once, for as much as two passes cost.
        expected, output = (compute(each, inputs).float().nan_to_num() for each in (network, fused))
        difference = ((output - expected).norm() / expected.norm().clamp(min=1e-30)).item()
        reason = None if difference <= MAX_DIFFERENCE else f"its output differs by {difference:.1%}"
    except Exception as error:  # whatever a compiler raises
        reason = " ".join(str(error).split())
    if reason is None:
        return fused
    logger.warning(f"A {type(network).__name__} runs in CUDA graphs, but not in the faster fused pass: {reason}")
    return network


class _Graphed:
    """A network as it was when it was last looked at, whose passes are replayed by [`CUDAGraphs`].

    Args:
        network (`nn.Module`): A UNet or a text encoder.
        graphs ([`CUDAGraphs`]): Where its graphs are kept.
    """

    def __init__(self, network: Network, graphs: CUDAGraphs) -> None:
        self.network, self.graphs = network, graphs
        self.look()

    def look(self) -> None:
        """See what the network is made of now."""
        self.looks, self.watch = self.graphs.looks, self.graphs.watch(self.network)
        # Graphs read the weights where they lie: these stay, even if the network is moved between two passes.
        self._weights = [tensor.data for tensor in self.watch.tensors]


class GraphedUNet(_Graphed):
    """A UNet whose passes are replayed; it is called as the UNet is."""

    @property
    def config(self) -> Any:
        """The UNet's config."""
        return self.network.config

    @property
    def dtype(self) -> torch.dtype:
        """The UNet's dtype."""
        return self.network.dtype

    def __call__(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        cross_attention_kwargs: dict[str, Any] | None = None,
        **inputs: torch.Tensor,
    ) -> UNet2DConditionOutput:
        """As the UNet's own `forward`, for tensors only. No gradient flows through a graph.

        Where `cross_attention_kwargs` hold more than `scale`, it is the UNet's own.
        """
        inputs = {"sample": sample, "timestep": timestep, **inputs}
        if set(cross_attention_kwargs or {}) - {"scale"}:
            return self.network(**inputs, cross_attention_kwargs=cross_attention_kwargs)
        scale = (cross_attention_kwargs or {}).get("scale")

        def compute(unet: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            return unet(**inputs, cross_attention_kwargs=cross_attention_kwargs).sample

        return UNet2DConditionOutput(self.graphs.run(self, inputs, compute, scale))


class GraphedTextEncoder(_Graphed):
    """A text encoder whose passes are replayed; it is called with a tokenizer's tensors."""

    def __call__(self, **tokens: torch.Tensor) -> BaseModelOutput:
        """As the text encoder's own `forward`, for tensors only."""

        def compute(text_encoder: Any, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
            return text_encoder(**tokens).last_hidden_state

        return BaseModelOutput(last_hidden_state=self.graphs.run(self, dict(tokens), compute))


class _Graph:
    """A captured pass: the tensors that it reads, the one that it writes, and its replay."""

    def __init__(
        self,
        buffers: dict[str, torch.Tensor],
        prepared: list[torch.Tensor],
        prepare: Replay | None,
        output: torch.Tensor,
        compute: Replay,
    ) -> None:
        self._buffers = buffers
        self._prepared = prepared  # so that nothing else is put into their memory
        self._prepare = prepare
        self._output = output
        self._compute = compute
        # Text and conditions are the same tensors for a whole run; only what its run has written counts.
        self._written: dict[str, torch.Tensor] = {}
        self._written_for: Callable[[], _Graphed | None] | None = None

    def replay(self, inputs: dict[str, torch.Tensor], graphed: _Graphed) -> torch.Tensor:
        if self._written_for is None or self._written_for() is not graphed:
            self._written, self._written_for = {}, weakref.ref(graphed)
        for name, value in inputs.items():
            if self._written.get(name) is not value:
                self._buffers[name].copy_(value)
                self._written[name] = value
                if name == TEXT and self._prepare is not None:
                    self._prepare()
        self._compute()
        return self._output.clone()


class _Watch:
    """Watches a network's weights, modules and LoRA. Where two of its states are equal, one graph serves both."""

    def __init__(self, network: Network) -> None:
        self._modules = list(network.modules())[1:]  # kept, so that their ids are not given to others
        modules: list[Any] = [*self._modules]
        parts = [
            part
            for module in network.modules()
            for part in (module._modules, module._parameters, module._buffers, *_hooks(module))
        ]
        self._parts, self._empty_parts = [part for part in parts if part], [part for part in parts if not part]
        self.tensors = [*network.parameters(), *network.buffers()]
        self._attentions = [module for module in modules if isinstance(module, Attention)]
        self._adapted = [module for module in modules if "scaling" in module.__dict__]  # of a LoRA
        self._seen = self._look()
        hooks = tuple(hook for module in network.modules() for part in _hooks(module) for hook in part.values())
        layouts = tuple((tensor.dtype, tensor.stride()) for tensor in self.tensors)
        self.state = _Hashed((*self._seen[1:], layouts, tuple(map(type, modules)), hooks))

    def is_unchanged(self) -> bool:
        """Whether nothing was exchanged since."""
        return self._look() == self._seen

    def _look(self) -> tuple[Any, ...]:
        objects = [id(value) for part in self._parts for value in part.values()]
        places = tuple([tensor.data_ptr() or id(tensor) for tensor in self.tensors])  # a quantized one tells none
        training = tuple([module.training for module in self._modules])
        processors = tuple(attention.processor for attention in self._attentions)
        adapters = tuple(
            (*module.scaling.items(), *module.active_adapters, module.disable_adapters, *module.merged_adapters)
            for module in self._adapted
        )
        return (objects, any(self._empty_parts)), places, training, processors, adapters


def _hooks(module: nn.Module) -> tuple[dict[int, Any], dict[int, Any]]:
    """What is called before and after a module."""
    return module._forward_pre_hooks, module._forward_hooks


class _Hashed:
    """A large value that is hashed once."""

    def __init__(self, value: Hashable) -> None:
        self._value = value
        self._hash = hash(value)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashed) and (self is other or self._value == other._value)
