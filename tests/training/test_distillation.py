"""A student takes in one step what its guided teacher takes in several."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from safetensors.torch import load_file
from tiny import tiny_inpaint_pipeline, tiny_pipeline
from torch import nn
from trainings import run_training

from glide_pipelines import GLIDEDDIMScheduler, GLIDEPipeline, GLIDESuperResolutionPipeline
from glide_pipelines.evaluation import sampling_settings
from glide_pipelines.models import tokenize_prompts
from glide_pipelines.sampling import Stage
from glide_pipelines.training import Distillation
from glide_pipelines.training.text_to_image import training_scheduler


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tokens(pipe, *captions):
    return dict(tokenize_prompts(pipe.tokenizer, list(captions)))


@torch.no_grad()
def ddim_by_hand(predict_noise, scheduler, x_t, timesteps, constrain):
    """DDIM from each of the timesteps to the next; -1 is the clean image."""
    alpha_bars = torch.cat([scheduler.alphas_cumprod, torch.ones(1, dtype=torch.float64)])
    for t, to in itertools.pairwise(timesteps):
        alpha_bar, alpha_bar_to = alpha_bars[t].item(), alpha_bars[to].item()
        x_start = constrain((x_t - (1 - alpha_bar) ** 0.5 * predict_noise(x_t, torch.tensor([t]))) / alpha_bar**0.5)
        noise = (x_t - alpha_bar**0.5 * x_start) / (1 - alpha_bar) ** 0.5
        x_t = alpha_bar_to**0.5 * x_start + (1 - alpha_bar_to) ** 0.5 * noise
    return x_t


@pytest.mark.parametrize(
    ("scale", "chosen"),
    [(1.0, None), (2.5, None), (2.5, [900, 620, 500, 210, 200, 0])],
    ids=["plain", "guided", "chosen"],
)
def test_a_step_of_the_student_ends_where_the_guided_steps_of_the_teacher_do(scale, chosen):
    pipe = tiny_pipeline()
    teacher = Stage.of(pipe, "base")
    distillation = Distillation(
        teacher, pipe.tokenizer, [900, 500, 200], teacher_steps=2, guidance_scale=scale, teacher_timesteps=chosen
    )
    steps = {2: [900, 700, 500], 1: [500, 350, 200], 0: [200, 100, -1]}  # 0 is the last one
    if chosen is not None:
        steps = {2: [900, 620, 500], 1: [500, 210, 200], 0: [200, 0, -1]}
    captions, step, x_t = ("a red circle", "a star", "a square", "blue"), torch.tensor([0, 2, 1, 2]), randn(4, 3, 8, 8)
    x_start = distillation.target(x_t, step, **tokens(pipe, *captions))
    noise = distillation.scheduler.process.predict_noise(x_t, x_start, step)
    for row, caption in enumerate(captions):

        def predict_noise(x_t, timestep, caption=caption):
            cond, uncond = (teacher(x_t, timestep, **tokens(pipe, text))[:, :3] for text in (caption, ""))
            return uncond + scale * (cond - uncond)

        timesteps, sample = steps[step[row].item()], x_t[row : row + 1]
        expected = ddim_by_hand(
            predict_noise, teacher.scheduler, sample, timesteps, lambda x_start: x_start.clamp(-1, 1)
        )
        given = distillation.scheduler.step(noise[row : row + 1], timesteps[0], sample).prev_sample
        torch.testing.assert_close(given, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("consistent", [False, True])
def test_the_upsampler_of_a_consistent_pipeline_is_sampled_as_there(consistent):
    pipe = tiny_pipeline()
    teacher = Stage.of(pipe, "super_res")
    low_res, x_t, text = randn(1, 3, 8, 8, seed=1).clamp(-1, 1), randn(1, 3, 32, 32), tokens(pipe, "a red circle")

    def constrain(x_start):
        x_start = x_start.clamp(-1, 1)
        missing = low_res - F.avg_pool2d(x_start, 4)
        return (x_start + consistent * F.interpolate(missing, (32, 32), mode="bilinear")).clamp(-1, 1)

    distillation = Distillation(teacher, pipe.tokenizer, 2, 2, low_res_consistency=consistent)
    x_start = distillation.target(x_t, torch.tensor([0]), **text, low_res=low_res)
    predict_noise = lambda x_t, timestep: teacher(x_t, timestep, **text, low_res=low_res)[:, :3]  # noqa: E731
    expected = ddim_by_hand(predict_noise, teacher.scheduler, x_t, [499, 249, -1], constrain)
    torch.testing.assert_close(x_start, expected, atol=2e-5, rtol=0)


class Gaussian(nn.Module):
    """Predicts the noise exactly where pixels are independent and normal, with mean 0 and standard deviation 0.5."""

    is_inpainter, dtype = False, torch.float32

    def __init__(self, alphas_cumprod):
        super().__init__()
        self.alphas_cumprod = alphas_cumprod.float()

    def forward(self, sample, timestep, **conditions):
        alpha_bar = self.alphas_cumprod[timestep].reshape(-1, 1, 1, 1)
        return SimpleNamespace(sample=(1 - alpha_bar).sqrt() * sample / (0.25 * alpha_bar + 1 - alpha_bar))


class OneFactorPerTimestep(nn.Module):
    def __init__(self):
        super().__init__()
        self.factors = nn.Parameter(torch.zeros(1000))

    def forward(self, sample, timesteps, **conditions):
        prediction = self.factors[timesteps].reshape(-1, 1, 1, 1) * sample
        return torch.cat([prediction, torch.zeros_like(prediction)], dim=1)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_student_of_a_teacher_with_a_known_solution_learns_it(prediction_type):
    pipe, scheduler = tiny_pipeline(upsampler=False), GLIDEDDIMScheduler(clip_sample=False)
    teacher = Stage("base", pipe.text_encoder, Gaussian(scheduler.alphas_cumprod), scheduler)
    distillation = Distillation(
        teacher, pipe.tokenizer, [900, 600, 300], teacher_steps=3, prediction_type=prediction_type
    )
    student, loss = OneFactorPerTimestep(), distillation.loss(Accelerator(cpu=True))
    optimizer = torch.optim.Adam(student.parameters(), lr=0.1)
    batch = {"pixel_values": 0.5 * randn(6, 3, 8, 8), "noise": randn(6, 3, 8, 8, seed=1)}
    batch |= {"timesteps": torch.arange(3).repeat(2), **tokens(pipe, *["red"] * 6)}
    for number in range(200):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - number / 200)
        optimizer.zero_grad()
        loss(student, batch)[0].mean().backward()
        optimizer.step()

    x_t = sample = randn(1, 3, 8, 8, seed=2)
    for timestep in distillation.scheduler.timesteps:
        sample = distillation.scheduler.step(student(sample, timestep[None]), timestep, sample).prev_sample
    timesteps = [900, 800, 700, 600, 500, 400, 300, 200, 99, -1]
    expected = ddim_by_hand(
        lambda x_t, timestep: teacher.unet(x_t, timestep).sample, scheduler, x_t, timesteps, lambda x_start: x_start
    )
    torch.testing.assert_close(sample, expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["base", "super_res"])
def test_backward_distillation_learns_at_what_the_pipeline_of_the_student_samples(name, monkeypatch):
    pipe, captions = tiny_pipeline(), ["a red circle", "a star", "a square"]
    pipe.register_to_config(low_res_consistency=True)
    is_base = name == "base"
    distillation = Distillation(
        Stage.of(pipe, name), pipe.tokenizer, [900, 500, 200], low_res_consistency=not is_base, backward=True
    )
    student = distillation.new_student()
    pipe.register_modules(**student.components())
    size = 8 if is_base else 32
    batch = {"pixel_values": randn(3, 3, size, size).clamp(-1, 1), "noise": randn(3, 3, size, size, seed=1)}
    batch |= {"timesteps": torch.tensor([2, 0, 1]), **tokens(pipe, *captions)}
    if not is_base:
        pixels = torch.randint(256, (3, 3, 8, 8), generator=torch.Generator().manual_seed(2))
        batch["low_res"] = pixels / 127.5 - 1
    learned_at = []
    monkeypatch.setattr(distillation, "target", lambda x_t, *_, **__: learned_at.append(x_t) or x_t)
    distillation.loss(Accelerator(cpu=True))(student, batch)

    first = distillation.scheduler.process.q_sample(batch["pixel_values"], batch["noise"], 2)
    sampled = [first]
    call = {"prompt": captions, "output_type": "pt", "callback_on_step_end_tensor_inputs": ["latents"]}
    call["callback_on_step_end"] = lambda pipe, step, timestep, tensors: sampled.append(tensors["latents"]) or {}
    if is_base:
        pipe(**call, latents=first, guidance_scale=1, super_res_num_inference_steps=1)
    else:
        pipe = GLIDESuperResolutionPipeline.from_pipe(pipe)
        pipe(**call, image=(batch["low_res"] + 1) / 2, latents=first, upsample_temperature=1)
    expected = torch.stack([sampled[2 - step][row] for row, step in enumerate(batch["timesteps"])])
    torch.testing.assert_close(learned_at[0], expected, atol=1e-5, rtol=0)


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    pipe = tiny_pipeline()
    pipe.register_to_config(default_guidance_scale=2.0, low_res_consistency=True)
    pipe.save_pretrained(folder)
    return folder


def distill(teacher, output, *more, steps=2):
    fixed = {"pretrained_model_name_or_path": teacher, "dataset_name": "shapes", "output_dir": output}
    fixed |= {"max_train_steps": steps, "train_batch_size": 4, "learning_rate": 1e-2, "ema_decay": 0}
    run_training("distill", [part for name, value in fixed.items() for part in (f"--{name}", str(value))] + list(more))


def load(folder):
    pipe = GLIDEPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_a_pair_of_students_generates_by_its_own_defaults(teacher, tmp_path, caplog):
    pair = ("--pipeline_dir", str(tmp_path / "pair"))
    distill(teacher, tmp_path / "super-res", "--stage", "super_res", "--num_inference_steps", "2", *pair)
    half = load(tmp_path / "pair")
    assert half.default_guidance_scale == 2.0 and half.config.low_res_consistency
    distill(teacher, tmp_path / "base", "--timesteps", "990", "600", "200", *pair)

    pipe, visited = load(tmp_path / "pair"), []
    assert pipe.default_guidance_scale == 1.0 and pipe.config.low_res_consistency
    assert pipe.config.prompt_domain == "shapes"
    original = load(teacher)
    for name in ("unet", "super_res_unet"):
        assert not torch.equal(getattr(pipe, name).conv_in.weight, getattr(original, name).conv_in.weight)
    keep = lambda pipe, step, timestep, tensors: visited.append(timestep.item()) or tensors  # noqa: E731
    call = {"prompt": "a red circle", "output_type": "pt", "callback_on_step_end": keep}
    own = pipe(**call, generator=torch.manual_seed(0)).images
    assert visited == [990, 600, 200, 999, 499]
    # As does who passes what is known of it.
    asked = {"num_inference_steps": 3, "super_res_num_inference_steps": 2, "guidance_scale": 1}
    assert torch.equal(pipe(**call, **asked, generator=torch.manual_seed(0)).images, own)
    assert not caplog.records
    settings = sampling_settings(pipe, model="pair", seed=0, batch_size=1, dtype="float32")
    assert (settings["steps"], settings["super_res_steps"]) == (3, 2)

    pipe(**call, num_inference_steps=5)
    assert "distilled for 3 steps" in caplog.text and len(caplog.records) == 1


def test_a_resumed_run_equals_an_unbroken_one(teacher, tmp_path):
    distill(teacher, tmp_path / "whole", steps=3)
    distill(teacher, tmp_path / "parts", steps=1)
    distill(teacher, tmp_path / "parts", "--resume_from_checkpoint", "latest", steps=3)
    for part in ("unet", "text_encoder"):
        [whole], [parts] = (
            list((tmp_path / run / "pipeline" / part).glob("*.safetensors")) for run in ("whole", "parts")
        )
        whole, parts = load_file(whole), load_file(parts)
        assert whole and all(torch.equal(whole[name], parts[name]) for name in whole)
    with pytest.raises(ValueError, match=r"of another model: `guidance_scale` is 2.0, got 3.0"):
        distill(teacher, tmp_path / "parts", "--resume_from_checkpoint", "latest", "--guidance_scale", "3", steps=4)


def test_a_run_may_go_on_with_more_of_the_teacher_and_at_its_own_samples(teacher, tmp_path, capsys):
    distill(teacher, tmp_path, steps=1)
    goes_on = ("--resume_from_checkpoint", "latest", "--teacher_steps", "4", "--backward_distillation")
    distill(teacher, tmp_path, *goes_on, steps=2)
    told = capsys.readouterr().out
    assert "The run goes on with `teacher_steps` 4; it was 2." in told
    assert "The run goes on with `backward_distillation` True; it was False." in told
    assert load(tmp_path / "pipeline").scheduler.config.trained_timesteps == [995, 749, 499, 249]
    distill(teacher, tmp_path, *goes_on, steps=3)
    assert "goes on with `" not in capsys.readouterr().out


def test_a_student_of_a_student(teacher, tmp_path):
    distill(teacher, tmp_path / "four", "--num_inference_steps", "4", steps=1)
    four = tmp_path / "four" / "pipeline"
    with pytest.raises(ValueError, match=r"`teacher` is itself a student, of the timesteps \[995, 749, 499, 249\]"):
        distill(four, tmp_path / "three", "--num_inference_steps", "3", steps=1)
    distill(four, tmp_path / "two", "--num_inference_steps", "2", "--prediction_type", "v_prediction", steps=1)
    two = load(tmp_path / "two" / "pipeline")
    assert two.scheduler.config.trained_timesteps == [995, 499] and two.default_guidance_scale == 1.0
    assert two.scheduler.config.prediction_type == "v_prediction"
    # Which has forgotten the other timesteps.
    with pytest.raises(ValueError, match="`stage` must know all timesteps to be trained"):
        training_scheduler(Stage.of(two, "base"))


def test_held_out_images_have_a_loss_of_the_student(teacher, tmp_path):
    from PIL import Image

    for number in range(2):
        Image.new("RGB", (8, 8), (90 * number, 80, 80)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a grey square")
    distill(teacher, tmp_path / "run", "--validation_data_dir", str(tmp_path), steps=1)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert lines[-1]["validation_loss"] > lines[-1]["validation_mse"] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--timesteps", "500", "900"), "`timesteps` must be a non-empty, strictly descending list"),
        (("--timesteps", "900", "1"), "`teacher_steps` 3 do not fit between the timesteps"),
        (("--timesteps", "999", "500"), "`timesteps` must begin at 995 or below on this noise schedule"),
        (("--num_inference_steps", "1001"), "`num_inference_steps` must lie between 1 and the 1000"),
        (
            ("--timesteps", "900", "--teacher_timesteps", "900", "5"),
            "`teacher_timesteps` must be 3 .`teacher_steps`. for",
        ),
        (("--resolution", "16"), "`resolution` must be that of the teacher, 8, got 16"),
        (("--stage", "super_res", "--guidance_scale", "3"), "`guidance_scale` must be 1: upsamplers are not guided"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_trained(teacher, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        distill(teacher, tmp_path, "--teacher_steps", "3", *options)
    assert not list(tmp_path.iterdir())


def test_a_student_that_predicts_another_thing_begins_with_nothing_of_it():
    pipe = tiny_pipeline()
    teacher = Stage.of(pipe, "base")
    student = Distillation(teacher, pipe.tokenizer, prediction_type="v_prediction").new_student()
    assert not any(parameter.any() for parameter in student.unet.conv_out.parameters())
    assert torch.equal(student.unet.conv_in.weight, teacher.unet.conv_in.weight) and teacher.unet.conv_out.weight.any()
    same = Distillation(teacher, pipe.tokenizer, prediction_type="epsilon").new_student()
    assert torch.equal(same.unet.conv_out.weight, teacher.unet.conv_out.weight)


def test_the_student_of_a_teacher_that_inpaints_makes_images_from_text():
    """As the model of the emoji does."""
    pipe = tiny_inpaint_pipeline()
    teacher = Stage.of(pipe, "base")
    assert teacher.unet.config.in_channels == 7
    student = Distillation(teacher, pipe.tokenizer).new_student()
    prompt, x_t, t = tokens(pipe, "a red circle", "a star"), randn(2, 3, 8, 8), torch.tensor([900, 100])
    with torch.no_grad():
        torch.testing.assert_close(student(x_t, t, **prompt), teacher(x_t, t, **prompt))
        assert student.unet.config.in_channels == 3
        prompt, low_res = tokens(pipe, "a star"), randn(1, 3, 4, 4)
        upsampler = Stage.of(pipe, "super_res")
        upsampler.scheduler = GLIDEDDIMScheduler.from_config(upsampler.scheduler.config, default_timesteps=[900, 10])
        assert Distillation(upsampler, pipe.tokenizer, 2).scheduler.timesteps.tolist() == [999, 499], "its own"
        student = Distillation(upsampler, pipe.tokenizer).new_student()
        x_t, t = randn(1, 3, 16, 16), torch.tensor([500])
        expected = upsampler(x_t, t, low_res=low_res, **prompt)
        torch.testing.assert_close(student(x_t, t, low_res=low_res, **prompt), expected)
        assert student.unet.config.in_channels == 6
