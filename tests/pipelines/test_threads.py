"""Calls that run at the same time: what belongs to a call travels with the call."""

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from editing import quiet
from PIL import Image
from tiny import tiny_call, tiny_clip_pipeline, tiny_inpaint_pipeline, tiny_pipeline

from glide_pipelines import (
    CLIPGuidance,
    GLIDEImg2ImgPipeline,
    GLIDEInpaintPipeline,
    GLIDEPipeline,
    GLIDESuperResolutionPipeline,
)


IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))
SMALL = IMAGE.resize((8, 8))
MASK = Image.new("L", (32, 32))
MASK.paste(255, (16, 0, 32, 32))


@pytest.fixture(scope="module")
def jobs():
    """Calls of all pipelines, over shared components, of different steps and guidance."""
    guided = quiet(tiny_clip_pipeline())
    pipe, sketch, inpaint, enlarge = (
        quiet(cls.from_pipe(guided))
        for cls in (GLIDEPipeline, GLIDEImg2ImgPipeline, GLIDEInpaintPipeline, GLIDESuperResolutionPipeline)
    )
    clip = CLIPGuidance(guided.clip_model, guided.clip_tokenizer, scale=5.0, end=0.5)
    return [
        lambda: pipe(**tiny_call(num_inference_steps=5, guidance_scale=3.0)),
        lambda: pipe(**tiny_call(num_inference_steps=3, guidance_scale=1.0)),
        lambda: guided(**tiny_call(num_inference_steps=4, clip_guidance_scale=20.0)),
        lambda: guided(**tiny_call(num_inference_steps=6, clip_prompt="a blue square", clip_guidance_end=0.5)),
        lambda: sketch(**tiny_call(num_inference_steps=6, strength=0.5, image=IMAGE, cond_fn=clip)),
        lambda: inpaint(**tiny_call(num_inference_steps=3, image=IMAGE, mask_image=MASK, num_resample=2)),
        lambda: enlarge(**tiny_call(super_res_num_inference_steps=None, num_inference_steps=4, image=SMALL)),
    ]


def test_a_call_that_is_over_keeps_nothing_of_what_steered_it():
    def call(pipe):
        steer = lambda x_t, timestep: torch.zeros_like(x_t).to(pipe.device)  # noqa: E731
        pipe(**tiny_call(num_inference_steps=1, cond_fn=steer))
        return weakref.ref(pipe.unet)

    unet = call(quiet(tiny_pipeline(upsampler=False)))
    gc.collect()
    assert unet() is None


def test_threads_share_pipelines_and_components(jobs):
    alone = [job().images for job in jobs]
    with ThreadPoolExecutor(4) as threads:
        together = [thread.result().images for thread in [threads.submit(jobs[i % len(jobs)]) for i in range(28)]]
    for i, images in enumerate(together):
        np.testing.assert_allclose(images, alone[i % len(jobs)], atol=1e-5)


@pytest.mark.slow
def test_eight_threads_under_load(jobs):
    """Every pipeline, the fine-tuned kind too, from eight threads at once: no error, and the images of calls alone."""
    inpaint = quiet(tiny_inpaint_pipeline())
    jobs = [
        *jobs,
        lambda: inpaint(**tiny_call(num_inference_steps=4, image=IMAGE, mask_image=MASK)),
        lambda: inpaint(**tiny_call(num_inference_steps=2, image=IMAGE, mask_image=MASK, guidance_scale=1.0)),
    ]
    alone = [job().images for job in jobs]
    order = np.random.default_rng(0).integers(len(jobs), size=240)
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(lambda i: jobs[i]().images, order))
    for i, images in zip(order, together, strict=True):
        np.testing.assert_allclose(images, alone[i], atol=1e-5)


def test_a_callback_reads_and_changes_its_own_call():
    pipe, barrier = quiet(tiny_pipeline(upsampler=False)), threading.Barrier(2, timeout=60)

    def call(steps, scale):
        seen = []

        def callback(pipe, step, timestep, tensors):
            if step == 0:
                barrier.wait()
            seen.append((pipe.stage, pipe.num_timesteps, pipe.guidance_scale))
            pipe._guidance_scale += 1
            return tensors

        pipe(**tiny_call(num_inference_steps=steps, guidance_scale=scale, callback_on_step_end=callback))
        return seen, pipe.num_timesteps, pipe.guidance_scale, pipe.stage

    with ThreadPoolExecutor(2) as threads:
        first, second = threads.submit(call, 3, 2.0), threads.submit(call, 4, 5.0)
    assert first.result() == ([("base", 3, 2.0 + i) for i in range(3)], 3, 5.0, None)
    assert second.result() == ([("base", 4, 5.0 + i) for i in range(4)], 4, 9.0, None)
    assert pipe.guidance_scale is None and pipe.num_timesteps == 0  # of this thread, which has called nothing


def test_another_thread_can_interrupt():
    pipe, started, steps = quiet(tiny_pipeline(upsampler=False)), threading.Event(), []

    def callback(pipe, step, timestep, tensors):
        steps.append(step)
        started.set()
        stopped.wait(60)
        return tensors

    stopped = threading.Event()
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(lambda: pipe(**tiny_call(num_inference_steps=9, callback_on_step_end=callback)))
        assert started.wait(60)
        pipe._interrupt = True
        stopped.set()
        call.result()
    assert steps == [0]


def test_a_callback_may_call_its_own_pipeline():
    pipe, states = quiet(tiny_pipeline(upsampler=False)), []

    def callback(pipe, step, timestep, tensors):
        pipe(**tiny_call(num_inference_steps=2, guidance_scale=1.0))
        states.append((pipe.stage, pipe.num_timesteps, pipe.guidance_scale))
        return tensors

    expected = pipe(**tiny_call(num_inference_steps=3)).images
    images = pipe(**tiny_call(num_inference_steps=3, callback_on_step_end=callback)).images
    np.testing.assert_array_equal(images, expected)
    assert states == [("base", 3, pipe.guidance_scale)] * 3


def test_a_scheduler_is_left_as_it_was():
    pipe = quiet(tiny_pipeline())
    before = pipe.scheduler.timesteps.clone()
    pipe(**tiny_call(num_inference_steps=3))
    torch.testing.assert_close(pipe.scheduler.timesteps, before)
