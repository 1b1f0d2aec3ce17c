"""UNets in graphs: the same images as without, from passes that are captured once and only replayed from then on.

On a CPU a tape of operators stands in for a CUDA graph. It has what makes graphs dangerous: what Python computed
is fixed when it is captured, and so are the tensors that it reads and the one that it writes. Where there is a CUDA
device, the same tests run on it with real graphs.
"""

from __future__ import annotations

import logging
import re
import threading
from collections import Counter
from unittest import mock

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler, PNDMScheduler
from diffusers.guiders import AdaptiveProjectedGuidance, ClassifierFreeGuidance
from diffusers.models.attention_processor import AttnAddedKVProcessor
from tiny import CONTEXT, WIDTH, tiny_call, tiny_clip_pipeline, tiny_inpaint_pipeline, tiny_pipeline, tiny_unet
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from glide_pipelines import GLIDEImg2ImgPipeline, GLIDEInpaintPipeline, GLIDEPipeline, GLIDESuperResolutionPipeline
from glide_pipelines.models import fused
from glide_pipelines.sampling import CUDAGraphs
from glide_pipelines.sampling.graphs import CUDARecorder


class Tape(TorchDispatchMode):
    """Records operators and the very tensors that they read and made."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        # Python must not ask a tensor for its values, for which a graph cannot wait.
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        made = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, made))
        return made

    def play(self, output: torch.Tensor) -> torch.Tensor:
        """Run all operators again; what the given output has become."""
        again: dict[int, torch.Tensor] = {}

        def current(value):
            return again.get(id(value), value)

        for func, args, kwargs, made in self.calls:
            remade = func(*tree_map(current, args), **tree_map(current, kwargs))
            again.update(zip(map(id, tree_leaves(made)), tree_leaves(remade), strict=True))
        return [again[id(each)] for each in tree_leaves(output)]


class CountingRecorder:
    """Captures on a CPU with tapes, on CUDA with graphs, and counts."""

    def __init__(self, device_type: str) -> None:
        self.device_type = device_type
        self.cuda = CUDARecorder()
        # Of a UNet's passes, of what it prepares for a text, and of text encoders.
        self.captures: Counter[str] = Counter()
        self.replays: Counter[str] = Counter()

    def capture(self, function, device):
        output, replay = self.cuda.capture(function, device) if device.type == "cuda" else self.tape(function)
        kind = "preparation" if isinstance(output, list) else "pass" if output.ndim == 4 else "text"
        self.captures[kind] += 1

        def counted() -> None:
            self.replays[kind] += 1
            replay()

        return output, counted

    @property
    def captured(self) -> int:
        """Passes of UNets that were captured."""
        return self.captures["pass"]

    def tape(self, function):
        # On a CPU, a text encoder asks ids for their values.
        with mock.patch("glide_pipelines.models.text_encoder.check_indices"), Tape() as tape:
            made = function()

        def replay() -> None:
            for output, value in zip(tree_leaves(made), tape.play(made), strict=True):
                output.copy_(value)

        return made, replay

    def take_turn(self, device):
        if device.type == "cuda":
            self.cuda.take_turn(device)


# Of an image in [0, 1]: graphs hold the fused pass, which adds up in another order, and networks of random weights
# enlarge what differs.
ROUNDING = 3e-4
NO_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=NO_CUDA)])
def device(request):
    return request.param


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch):
    """TensorFloat-32, the default of float32 on CUDA, rounds to three digits, and random networks enlarge that."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.fixture
def recorder(device):
    return CountingRecorder(device)


@pytest.fixture
def graphed(recorder):
    """Enables graphs on a pipeline, and puts it on the device."""

    def enable(pipe, max_graphs: int = 8):
        pipe.to(recorder.device_type)._cuda_graphs = CUDAGraphs(max_graphs, recorder)
        return pipe

    return enable


def assert_equal_images(pipe, graphed, **call):
    """The call gives the same images with graphs; returns them."""
    graphed(pipe).disable_cuda_graphs()
    expected = pipe(**tiny_call(**call)).images
    images = graphed(pipe)(**tiny_call(**call)).images
    np.testing.assert_allclose(images, expected, atol=ROUNDING)
    return images


def sample(pipe, recorder, **call):
    """What a call of a pipeline with graphs gives, and how many passes it captured."""
    before = recorder.captured
    return pipe(**tiny_call(**call)).images, recorder.captured - before


def noise(device: str, size: int) -> torch.Tensor:
    return torch.randn(1, 3, size, size, device=device)


def timestep(device: str, value: int) -> torch.Tensor:
    return torch.tensor(value, device=device)


# -- what is captured --------------------------------------------------------------------------------------------------


def test_each_stage_is_captured_once_and_replayed_at_every_step(graphed, recorder):
    assert_equal_images(tiny_pipeline(), graphed, num_inference_steps=5, super_res_num_inference_steps=3)
    assert (recorder.captured, recorder.replays["pass"]) == (2, 8)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_what_the_text_alone_decides_is_computed_once_a_call(mode, graphed, recorder):
    pipe = graphed(tiny_pipeline())
    for calls in (1, 2, 3):
        with mode():
            sample(pipe, recorder, num_inference_steps=5)
        # Of the two stages. Each is also run once when it is captured.
        assert recorder.replays["preparation"] == 2 + 2 * calls


def test_text_encoders_are_captured_too(graphed, recorder):
    assert_equal_images(tiny_pipeline(), graphed, guidance_scale=3.0)
    assert recorder.captures["text"] == 2  # one for each stage
    assert recorder.replays["text"] == 3  # the prompt for each, and the empty one


def test_another_prompt_is_replayed_another_size_captured(graphed, recorder):
    pipe = graphed(tiny_pipeline())
    first, _ = sample(pipe, recorder)
    other, captured = sample(pipe, recorder, prompt="a blue square")
    assert captured == 0
    assert np.abs(first - other).max() > 1e-3
    _, captured = sample(pipe, recorder, height=64, width=32)
    assert captured == 2


def test_the_graphs_that_are_kept_are_bounded(graphed, recorder):
    pipe = graphed(tiny_pipeline(upsampler=False), max_graphs=3)  # the text encoder's, and two of the UNet
    assert [sample(pipe, recorder, num_images_per_prompt=n)[1] for n in (1, 2, 1, 3, 1, 2)] == [1, 1, 0, 1, 0, 1]
    assert len(pipe._cuda_graphs) == 3


def test_what_stays_the_same_is_written_once(device, recorder):
    run = CUDAGraphs(recorder=recorder).of(tiny_unet(6, 32).to(device))
    text, low_res = torch.randn(1, CONTEXT, WIDTH, device=device), torch.randn(1, 3, 8, 8, device=device)
    copies = []

    class CountCopies(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten.copy_.default:
                copies.append(tuple(args[1].shape))
            return func(*args, **(kwargs or {}))

    with torch.no_grad():
        run(noise(device, 32), timestep(device, 9), encoder_hidden_states=text, low_res=low_res)
        (graph,) = run.graphs._graphs.values()
        graph._compute = lambda: None  # only what is written before it is counted
        with CountCopies():
            run(noise(device, 32), timestep(device, 8), encoder_hidden_states=text, low_res=low_res)
            assert copies == [(1, 3, 32, 32), ()]
            low_res = torch.zeros_like(low_res)
            run(noise(device, 32), timestep(device, 7), encoder_hidden_states=text, low_res=low_res)
    assert copies[2:] == [(1, 3, 32, 32), (), (1, 3, 8, 8)]


def test_the_output_belongs_to_the_caller(device, recorder):
    unet, text = CUDAGraphs(recorder=recorder).of(tiny_unet().to(device)), torch.randn(1, CONTEXT, WIDTH, device=device)
    with torch.no_grad():
        first = unet(noise(device, 8), timestep(device, 9), encoder_hidden_states=text).sample
        kept = first.clone()
        unet(noise(device, 8), timestep(device, 9), encoder_hidden_states=text)
    assert first.equal(kept)


# -- everything that a call can hold -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scheduler", [EulerDiscreteScheduler, HeunDiscreteScheduler, PNDMScheduler, DPMSolverMultistepScheduler]
)
@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_any_scheduler(scheduler, guidance_scale, graphed):
    pipe = tiny_pipeline(upsampler=False)
    pipe.scheduler = scheduler.from_config(pipe.scheduler.config)
    assert_equal_images(pipe, graphed, num_inference_steps=6, guidance_scale=guidance_scale)


@pytest.mark.parametrize("guider", [AdaptiveProjectedGuidance, ClassifierFreeGuidance])
def test_a_guider_in_an_interval_runs_batches_of_two_and_of_one(guider, graphed, recorder):
    pipe, interval = tiny_pipeline(upsampler=False), guider(guidance_scale=4.0, start=0.3, stop=0.7)
    assert_equal_images(pipe, graphed, num_inference_steps=10, guider=interval)
    assert recorder.captured == 2


def test_a_gradient_of_clip(graphed):
    assert_equal_images(tiny_clip_pipeline(), graphed, num_inference_steps=4)


def test_known_pixels_in_both_modes(graphed):
    image, mask = torch.rand(1, 3, 32, 32), torch.ones(1, 1, 32, 32)
    mask[..., :16] = 0
    for pipe in (tiny_inpaint_pipeline(), GLIDEInpaintPipeline.from_pipe(tiny_pipeline())):
        pipe.set_progress_bar_config(disable=True)
        assert_equal_images(pipe, graphed, image=image, mask_image=mask)


def test_a_callback_changes_prompt_and_guidance(graphed):
    def change(pipe, step, timestep, tensors):
        if step == 1:
            pipe._guidance_scale = 7.0
            return {"prompt_embeds": tensors["prompt_embeds"] * 2}
        if step == 2:
            tensors["prompt_embeds"].mul_(-1)  # in place
        return {}

    names = ["latents", "prompt_embeds"]
    call = {"callback_on_step_end": change, "callback_on_step_end_tensor_inputs": names, "num_inference_steps": 5}
    changed = assert_equal_images(tiny_pipeline(), graphed, **call)
    assert np.abs(changed - tiny_pipeline()(**tiny_call(num_inference_steps=5)).images).max() > 1e-3


def test_in_parts_and_in_tiles(graphed, recorder):
    assert_equal_images(tiny_pipeline(), graphed, num_images_per_prompt=3, max_batch_size=2)
    pipe = GLIDESuperResolutionPipeline.from_pipe(tiny_pipeline().to(recorder.device_type))
    pipe.set_progress_bar_config(disable=True)
    call = tiny_call(image=torch.rand(1, 3, 16, 16), tile_size=32)
    del call["super_res_num_inference_steps"]
    expected = pipe(**call | {"generator": torch.Generator().manual_seed(0)}).images
    before = recorder.captured
    images = graphed(pipe)(**call | {"generator": torch.Generator().manual_seed(0)}).images
    np.testing.assert_allclose(images, expected, atol=ROUNDING)
    assert recorder.captured - before == 1  # tiles have one size


def test_threads_share_the_graphs_of_a_pipeline(graphed, device, recorder):
    pipe = tiny_pipeline().to(device)
    prompts = ["a red circle", "a blue square", "a green star"]
    expected = [pipe(**tiny_call(prompt=prompt)).images for prompt in prompts]
    graphed(pipe)
    images = [None] * 3

    def run(index):
        images[index] = pipe(**tiny_call(prompt=prompts[index])).images

    threads = [threading.Thread(target=run, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose(images, expected, atol=ROUNDING)
    assert recorder.captured == 2


def test_inference_mode_before_and_after(graphed, device):
    pipe = tiny_pipeline().to(device)
    expected = pipe(**tiny_call()).images
    graphed(pipe)
    with torch.inference_mode():
        np.testing.assert_allclose(pipe(**tiny_call()).images, expected, atol=ROUNDING)
    np.testing.assert_allclose(pipe(**tiny_call()).images, expected, atol=ROUNDING)


# -- weights that change -----------------------------------------------------------------------------------------------


def test_weights_changed_in_place_need_no_new_graph(graphed, recorder):
    pipe = graphed(tiny_pipeline(upsampler=False))
    before, _ = sample(pipe, recorder)
    with torch.no_grad():
        pipe.unet.conv_in.weight.mul_(1.5)
    after, captured = sample(pipe, recorder)
    assert captured == 0
    assert np.abs(before - after).max() > 1e-3
    assert_equal_images(pipe, graphed)


def test_weights_that_were_replaced_are_captured_again(graphed, recorder):
    pipe = graphed(tiny_pipeline(upsampler=False))
    sample(pipe, recorder)
    pipe.to(torch.bfloat16)
    assert sample(pipe, recorder)[1] == 1
    pipe.to(torch.float32)
    assert sample(pipe, recorder)[1] == 1
    pipe.unet.conv_in.weight = torch.nn.Parameter(2 * pipe.unet.conv_in.weight)
    images, captured = sample(pipe, recorder)
    assert captured == 1
    pipe.disable_cuda_graphs()
    np.testing.assert_allclose(images, pipe(**tiny_call()).images, atol=ROUNDING)


def test_a_lora_and_its_scale(graphed, recorder):
    peft = pytest.importorskip("peft")
    pipe = tiny_pipeline(upsampler=False)
    graphed(pipe)
    plain, _ = sample(pipe, recorder)
    pipe.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "add_k_proj"], init_lora_weights=False))
    seen = [plain]
    for scale in (None, 0.5, 0.0):
        call = {} if scale is None else {"cross_attention_kwargs": {"scale": scale}}
        images, captured = sample(pipe, recorder, **call)
        assert captured == 1
        assert sample(pipe, recorder, **call)[1] == 0
        seen.append(images)
    pipe.unet.set_adapters("default", 0.25)
    seen.append(sample(pipe, recorder)[0])
    pipe.unet.disable_lora()
    seen.append(sample(pipe, recorder)[0])
    different = [np.abs(images - plain).max() > 1e-4 for images in seen]
    assert different == [False, True, True, False, True, False]


def test_a_callback_may_change_a_lora(graphed, recorder):
    peft = pytest.importorskip("peft")
    pipe = tiny_pipeline(upsampler=False)
    lora = peft.LoraConfig(r=2, target_modules=["to_q", "add_k_proj"], init_lora_weights=False)
    pipe.unet.add_adapter(lora, "a")

    def change(pipe, step, timestep, tensors):
        if step == 0:
            pipe.unet.set_adapters(["a"], [5.0])
        return {}

    # From the third step on without guidance: a shape that is new only then.
    guider = ClassifierFreeGuidance(3.0, stop=0.5)
    call = {"num_inference_steps": 4, "guider": guider, "guidance_scale": 1.0}
    images = {}
    for name in ("usual", "in graphs"):
        if name == "in graphs":
            graphed(pipe)
        for callback in (change, None):
            pipe.unet.set_adapters(["a"], [1.0])
            images[name, callback] = pipe(**tiny_call(**call, callback_on_step_end=callback)).images
    for callback in (change, None):
        np.testing.assert_allclose(images["in graphs", callback], images["usual", callback], atol=ROUNDING)
    assert np.abs(images["usual", change] - images["usual", None]).max() > 1e-2


def test_other_modules_processors_and_hooks_are_captured_again(graphed, recorder):
    pipe = graphed(tiny_pipeline(upsampler=False))
    sample(pipe, recorder)
    pipe.unet.set_attn_processor(DoubledAttention())
    assert sample(pipe, recorder)[1] == 1
    assert_equal_images(pipe, graphed)
    pipe.unet.conv_act = torch.nn.ReLU()
    assert sample(pipe, recorder)[1] == 1
    assert_equal_images(pipe, graphed)
    pipe.unet.mid_block.register_forward_hook(lambda module, inputs, output: 2 * output)
    assert sample(pipe, recorder)[1] == 1
    assert_equal_images(pipe, graphed)


class DoubledAttention(AttnAddedKVProcessor):
    def __call__(self, attn, hidden_states, *args, **kwargs):
        return 2 * super().__call__(attn, hidden_states, *args, **kwargs)


@torch.no_grad()
def test_weights_changed_between_two_contexts_of_autocast_are_seen(device, recorder):
    unet, graphs = tiny_unet().to(device), CUDAGraphs(recorder=recorder)
    inputs = {"sample": noise(device, 8), "timestep": timestep(device, 9)}
    inputs["encoder_hidden_states"] = torch.randn(1, CONTEXT, WIDTH, device=device)
    for factor in (1.0, 1.5):
        unet.conv_in.weight.mul_(factor)
        with torch.autocast(device, torch.bfloat16):
            output, expected = graphs.of(unet)(**inputs).sample, unet(**inputs).sample
        assert (output - expected).norm() < 0.05 * expected.norm()
    assert recorder.captured == 1


# -- where graphs cannot be --------------------------------------------------------------------------------------------


def test_a_pipeline_on_a_cpu_is_refused():
    with pytest.raises(ValueError, match="`unet` cannot run in CUDA graphs: it is on the device 'cpu'"):
        tiny_pipeline().enable_cuda_graphs()
    with pytest.raises(ValueError, match="`max_graphs` must be 1 or more"):
        tiny_pipeline().enable_cuda_graphs(max_graphs=0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda pipe: pipe.enable_model_cpu_offload(device="cpu"), "hooks move or cast its weights"),
        (lambda pipe: pipe.unet.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32), "hooks move or cast"),
        # As `compile` leaves it, without the compiler's seconds.
        (lambda pipe: setattr(pipe.unet, "_compiled_call_impl", pipe.unet._call_impl), "it is compiled"),
    ],
)
def test_what_comes_in_the_way_later_is_told_and_the_unet_runs_as_before(change, reason, graphed, recorder, caplog):
    pipe = graphed(tiny_pipeline(upsampler=False))
    change(pipe)
    with caplog.at_level(logging.WARNING, "glide_pipelines"):
        sample(pipe, recorder)
    assert recorder.captured == 0
    assert [f"runs without CUDA graphs: {reason}" in text for text in caplog.messages] == [True]


def test_a_pass_that_cannot_be_captured_runs_without_a_graph(graphed, recorder, monkeypatch, caplog):
    def fail(function, device):
        raise torch.OutOfMemoryError("out of\nmemory")

    pipe = tiny_pipeline(upsampler=False).to(recorder.device_type)
    expected = pipe(**tiny_call()).images
    monkeypatch.setattr(recorder, "capture", fail)
    with caplog.at_level(logging.WARNING, "glide_pipelines"):
        np.testing.assert_array_equal(graphed(pipe)(**tiny_call()).images, expected)
    assert len(caplog.messages) == 2  # of text encoder and UNet
    assert all("cannot be captured: out of memory" in message for message in caplog.messages)
    assert len(pipe._cuda_graphs) == 0


@pytest.mark.parametrize(
    ("mistake", "reason"),
    [
        (lambda x, other, bias: x, "its output differs by [0-9.]+%"),
        (lambda x, other, bias: 1 / 0, "division by zero"),
    ],
)
def test_where_the_fused_pass_is_wrong_the_usual_one_is_captured(
    mistake, reason, graphed, recorder, monkeypatch, caplog
):
    monkeypatch.setattr(fused, "add", mistake)
    with caplog.at_level(logging.WARNING, "glide_pipelines"):
        assert_equal_images(tiny_pipeline(upsampler=False), graphed)
    assert (recorder.captured, recorder.captures["preparation"]) == (1, 0)
    assert re.search(f"not in the faster fused pass: {reason}", caplog.text)


def test_a_text_encoder_of_another_class_runs_as_it_is(graphed):
    peft = pytest.importorskip("peft")
    pipe = tiny_pipeline(upsampler=False)
    pipe.text_encoder = peft.get_peft_model(pipe.text_encoder, peft.LoraConfig(r=2, target_modules=["q_proj"]))
    assert_equal_images(pipe, graphed)


def test_gradients_flow_past_graphs(device, recorder):
    unet, text = CUDAGraphs(recorder=recorder).of(tiny_unet().to(device)), torch.randn(1, CONTEXT, WIDTH, device=device)
    sample = noise(device, 8).requires_grad_()
    unet(sample, timestep(device, 9), encoder_hidden_states=text).sample.sum().backward()
    assert sample.grad is not None
    assert recorder.captured == 0


def test_pipelines_over_the_same_components_share_the_graphs(graphed, recorder):
    pipe = graphed(tiny_pipeline())
    sample(pipe, recorder)
    other = GLIDEImg2ImgPipeline.from_pipe(pipe)
    other.set_progress_bar_config(disable=True)
    assert sample(other, recorder, image=torch.rand(1, 3, 32, 32))[1] == 0


@pytest.mark.parametrize(("options", "expected"), [([], True), (["--no-cuda-graphs"], False)])
def test_the_command_uses_graphs_on_cuda(options, expected, model, monkeypatch):
    from glide_cli import loading, read_arguments

    monkeypatch.setattr(loading, "find_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(GLIDEPipeline, "to", lambda self, where: self)
    monkeypatch.setattr(CUDAGraphs, "obstacle", lambda self, unet: None)
    args = read_arguments("draw", ["a circle", "-o", "x.png", "--model", model, "--dtype", "bfloat16", *options])
    pipe = loading.open_pipeline(**loading.model_values(args))
    assert (pipe._cuda_graphs is not None) is expected
    assert (GLIDEImg2ImgPipeline.from_pipe(pipe)._cuda_graphs is not None) is expected


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("can't allocate memory")]
)
def test_where_memory_ends_the_error_says_what_needs_less(error, monkeypatch):
    pipe = tiny_pipeline()
    monkeypatch.setattr(pipe.unet, "forward", lambda *args, **kwargs: (_ for _ in ()).throw(error))
    with pytest.raises(type(error)) as raised:
        pipe(**tiny_call())
    (note,) = raised.value.__notes__
    assert all(word in note for word in ("max_batch_size", "tile_size", "enable_model_cpu_offload"))
