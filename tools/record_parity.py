#!/usr/bin/env python
"""Run the original implementation on the recorded inputs; compare the results, or write the recordings again.

It imports clones of openai/glide-text2im and openai/guided-diffusion: docs/parity.md says how to get them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file, save_file


ROOT = Path(__file__).resolve().parents[1]
RECORDINGS = ROOT / "tests" / "recordings"
sys.path.append(str(ROOT / "tests"))

from recorded_weights import recorded_state_dict  # noqa: E402


Tensors = dict[str, torch.Tensor]
NETWORKS = ("base", "upsample", "base-inpaint", "upsample-inpaint")
STEPS = ("linear-fast27", "squaredcos_cap_v2-100")
CONDITIONS = ("low_res", "inpaint_image", "inpaint_mask")
# Noise schedule and respacing of the loops' stages.
BASE_SPACING = ("squaredcos_cap_v2", "ddim25")
UPSAMPLE_SPACING = ("linear", "fast27")


# -- the small models -------------------------------------------------------------------------------------------------


def build_unet(name: str) -> torch.nn.Module:
    """One of the four UNets, text encoder included, with the recorded weights."""
    from glide_text2im import text2im_model

    network_class = {
        "base": text2im_model.Text2ImUNet,
        "upsample": text2im_model.SuperResText2ImUNet,
        "base-inpaint": text2im_model.InpaintText2ImUNet,
        "upsample-inpaint": text2im_model.SuperResInpaintText2ImUnet,
    }[name]
    config = json.loads((RECORDINGS / "configs.json").read_text())["unets"][name]
    model = network_class(
        text_ctx=config["text_ctx"],
        xf_width=config["xf_width"],
        xf_layers=config["xf_layers"],
        xf_heads=config["xf_heads"],
        xf_final_ln=True,
        xf_padding=True,
        tokenizer=SimpleNamespace(n_vocab=config["n_vocab"]),
        in_channels=3,
        out_channels=6,
        model_channels=config["num_channels"],
        num_res_blocks=config["num_res_blocks"],
        attention_resolutions=tuple(config["attention_ds"]),
        channel_mult=tuple(config["channel_mult"]),
        num_head_channels=config["num_head_channels"],
        use_scale_shift_norm=True,
        resblock_updown=True,
    )
    model.load_state_dict(recorded_state_dict(RECORDINGS, name))
    return model.eval()


def build_clip() -> Any:
    """The noised CLIP with the recorded weights."""
    from glide_text2im.clip.model_creation import create_clip_model

    config = json.loads((RECORDINGS / "configs.json").read_text())["clip"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.yaml"
        path.write_text(json.dumps(config | {"logit_scale": 100.0, "n_timesteps": 1000}))
        clip = create_clip_model(str(path), device=torch.device("cpu"), tokenizer=SimpleNamespace())
    clip.text_encoder.load_state_dict(recorded_state_dict(RECORDINGS, "clip-text-enc"))
    clip.image_encoder.load_state_dict(recorded_state_dict(RECORDINGS, "clip-image-enc"))
    return clip


def build_diffusion(schedule: str, respacing: str) -> Any:
    """The diffusion process with its samplers."""
    from glide_text2im.model_creation import create_gaussian_diffusion

    return create_gaussian_diffusion(steps=1000, noise_schedule=schedule, timestep_respacing=respacing)


# -- what is recorded -------------------------------------------------------------------------------------------------


def network(given: Tensors, name: str) -> Tensors:
    model = build_unet(name)
    text = model.get_text_emb(given["tokens"], given["mask"])
    conditions = {key: given[key] for key in ("tokens", "mask", *CONDITIONS) if key in given}
    return {
        "text_hidden": text["xf_out"].transpose(1, 2),
        "text_projection": text["xf_proj"],
        "output": model(given["sample"], given["timesteps"], **conditions),
    }


def noised_clip(given: Tensors) -> Tensors:
    clip = build_clip()
    clip.encode_prompts = lambda prompts: (given["tokens"], given["token_lengths"])
    return {
        "text_embeds": clip.text_embeddings([]),
        "image_embeds": clip.image_embeddings(given["sample"], given["timesteps"]),
        "logit_scale": clip.logit_scale.exp().reshape(1),
        "grad_scale_3": clip.cond_fn([], grad_scale=3.0)(given["sample"], given["timesteps"]),
    }


def scheduler_steps(given: Tensors, name: str) -> Tensors:
    """One step from each kept timestep; the batch holds all of them."""
    diffusion = build_diffusion(*name.split("-"))
    steps = torch.arange(len(given["timesteps"]))

    def step(sampler: Callable[..., Tensors], **options) -> Tensors:
        with patch("torch.randn_like", return_value=given["noise"]):
            return sampler(lambda x, t: given["model_output"], given["sample"], steps, model_kwargs={}, **options)

    guided = {"cond_fn": lambda x, t: given["guidance_grad"]}
    outputs = {
        "timesteps": torch.tensor(diffusion.timestep_map),
        "ddpm_prev_guided": step(diffusion.p_sample, **guided)["sample"],
        "ddim_prev_guided": step(diffusion.ddim_sample, **guided)["sample"],
        "ddim_eta1_prev": step(diffusion.ddim_sample, eta=1.0)["sample"],
    }
    for clip in (True, False):
        ancestral = step(diffusion.p_sample, clip_denoised=clip)
        outputs[f"ddpm_prev_clip{clip:d}"] = ancestral["sample"]
        outputs[f"pred_x0_clip{clip:d}"] = ancestral["pred_xstart"]
        outputs[f"ddim_prev_clip{clip:d}"] = step(diffusion.ddim_sample, clip_denoised=clip)["sample"]
    return outputs


def classifier_free(model: torch.nn.Module, given: Tensors, scale: float) -> Callable[..., torch.Tensor]:
    """The model's prediction, guided away from the empty prompt."""
    tokens, mask = (torch.cat([given[name], given[f"uncond_{name}"]]) for name in ("tokens", "mask"))

    def predict(x: torch.Tensor, timesteps: torch.Tensor, **conditions: torch.Tensor) -> torch.Tensor:
        twice = {name: torch.cat([value, value]) for name, value in conditions.items()}
        output = model(torch.cat([x, x]), timesteps.repeat(2), tokens=tokens, mask=mask, **twice)
        prompted, empty = output.chunk(2)
        return torch.cat([empty[:, :3] + scale * (prompted - empty)[:, :3], prompted[:, 3:]], dim=1)

    return predict


def sample_ddim(model: Callable[..., torch.Tensor], noise: torch.Tensor, spacing: tuple[str, str], **options) -> Any:
    return build_diffusion(*spacing).ddim_sample_loop(model, tuple(noise.shape), noise=noise, device="cpu", **options)


def two_stages(given: Tensors, scale: float, inpaint: bool) -> Tensors:
    """The guided base stage, and the upsampler on `low_res`, the recorded base sample rounded to 8 bits.

    With the new base sample instead, one value that rounds to the neighbouring level would dominate the difference.
    """

    def known(suffix: str) -> dict[str, Any]:
        if not inpaint:
            return {"model_kwargs": {}}
        image, keep = given[f"image{suffix}"], given[f"keep_mask{suffix}"]
        return {
            "model_kwargs": {"inpaint_image": keep * image, "inpaint_mask": keep},
            "denoised_fn": lambda x_start: torch.where(keep == 1, image, x_start),
        }

    kind = "-inpaint" if inpaint else ""
    base = classifier_free(build_unet(f"base{kind}"), given, scale)
    base_sample = sample_ddim(base, given["base_noise"], BASE_SPACING, **known(""))
    low_res = (127.5 * (given["base_sample"] + 1)).round() / 127.5 - 1
    options = known("_up")
    options["model_kwargs"] |= {"tokens": given["tokens"], "mask": given["mask"], "low_res": low_res}
    sample = sample_ddim(build_unet(f"upsample{kind}"), given["up_noise"], UPSAMPLE_SPACING, **options)
    return {"base_sample": base_sample, "low_res": low_res, "sample": sample}


def clip_guidance(given: Tensors) -> Tensors:
    clip, model, noise = build_clip(), build_unet("base"), given["base_noise"]
    clip.text_embeddings = lambda prompts: given["clip_text_embeds"]
    options = {
        "cond_fn": clip.cond_fn([], grad_scale=given["guidance_scale"].item()),
        "model_kwargs": {"tokens": given["tokens"], "mask": given["mask"]},
    }
    with patch("torch.randn_like", side_effect=list(given["ddpm_noise"])):
        ancestral = build_diffusion("squaredcos_cap_v2", "25").p_sample_loop(
            model, tuple(noise.shape), noise=noise, **options
        )
    return {"ddim_sample": sample_ddim(model, noise, BASE_SPACING, **options), "ddpm_sample": ancestral}


def training_losses(given: Tensors) -> Tensors:
    from guided_diffusion import gaussian_diffusion as gd

    outputs = {}
    for schedule, original_name in (("linear", "linear"), ("squaredcos_cap_v2", "cosine")):
        diffusion = gd.GaussianDiffusion(
            betas=gd.get_named_beta_schedule(original_name, 1000),
            model_mean_type=gd.ModelMeanType.EPSILON,
            model_var_type=gd.ModelVarType.LEARNED_RANGE,
            loss_type=gd.LossType.RESCALED_MSE,
        )
        x_start, noise, timesteps = given["x_start"], given["noise"], given["timesteps"]
        losses = diffusion.training_losses(lambda x, t: given["model_output"], x_start, timesteps, noise=noise)
        outputs |= {f"{schedule}/rescaled_mse/{name}": value for name, value in losses.items()}
        outputs[f"{schedule}/x_t"] = diffusion.q_sample(x_start, timesteps, noise=noise)
    return outputs


TENSORS: dict[str, Callable[[Tensors], Tensors]] = {
    **{name: partial(network, name=name) for name in NETWORKS},
    "clip": noised_clip,
    **{f"steps-{name}": partial(scheduler_steps, name=name) for name in STEPS},
    "text2im-loop": partial(two_stages, scale=3.0, inpaint=False),
    "inpaint-loop": partial(two_stages, scale=5.0, inpaint=True),
    "clip-loop": clip_guidance,
    "training-loss": training_losses,
}


def kept_timesteps(stored: dict[str, list[int]]) -> dict[str, list[int]]:
    from glide_text2im.respace import space_timesteps

    return {name: sorted(space_timesteps(1000, name.split("/")[1])) for name in stored}


def merges_behind(ids: Iterable[int], tokenizer: Any) -> dict[str, str]:
    """The merges that build these tokens, by the id of the token that each makes, in order of precedence."""
    merges = {"".join(pair): pair for pair in tokenizer.bpe_ranks}
    used, pending = set(), [tokenizer.decoder[token_id] for token_id in ids]
    while pending:
        token = pending.pop()
        if token in merges and token not in used:
            used.add(token)
            pending += merges[token]
    ordered = sorted(used, key=lambda token: tokenizer.bpe_ranks[merges[token]])
    return {str(tokenizer.encoder[token]): " ".join(merges[token]) for token in ordered}


def token_ids(stored: dict[str, Any]) -> dict[str, Any]:
    from glide_text2im.tokenizer.bpe import get_encoder
    from glide_text2im.tokenizer.simple_tokenizer import SimpleTokenizer

    glide, clip = get_encoder(), SimpleTokenizer()
    rows = []
    for row in stored["rows"]:
        glide_ids = glide.encode(row["text"])[: stored["glide"]["context"]]
        clip_ids, clip_length = clip.padded_tokens_and_len(clip.encode(row["text"]), stored["clip"]["context"])
        ids = {"glide_ids": glide_ids, "clip_ids": clip_ids[:clip_length]}
        rows.append({"text": row["text"], **ids})
    used = {name: [i for row in rows for i in row[f"{name}_ids"]] for name in ("glide", "clip")}
    return {
        "glide": stored["glide"] | {"merges": merges_behind(used["glide"], glide)},
        "clip": stored["clip"] | {"merges": merges_behind(used["clip"], clip)},
        "rows": rows,
    }


FACTS: dict[str, Callable[[Any], Any]] = {"timesteps": kept_timesteps, "tokens": token_ids}


# -- comparing and writing --------------------------------------------------------------------------------------------


def largest_difference(outputs: Tensors, stored: Tensors) -> float:
    for name, value in outputs.items():
        if value.shape != stored[name].shape:
            raise ValueError(f"{name} has the shape {list(value.shape)}, and {list(stored[name].shape)} was recorded")
    return max((value.double() - stored[name].double()).abs().max().item() for name, value in outputs.items())


def main(args: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--original", type=Path, required=True, help="a clone of openai/glide-text2im")
    parser.add_argument("--guided-diffusion", type=Path, required=True, help="a clone of openai/guided-diffusion")
    parser.add_argument("--output", type=Path, help="a folder for the new recordings; without it nothing is written")
    options = parser.parse_args(args)
    for clone, package in ((options.original, "glide_text2im"), (options.guided_diffusion, "guided_diffusion")):
        if not (clone / package).is_dir():
            parser.error(f"{clone} holds no folder {package}")
        sys.path.insert(0, str(clone))
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)

    # Sums depend on the number of threads; the recordings were made with one.
    torch.set_num_threads(1)
    for name, record in TENSORS.items():
        file = f"{name}.safetensors"
        stored = load_file(RECORDINGS / file)
        outputs = {key: value.detach().contiguous() for key, value in record(stored).items()}
        print(f"{file:40} largest difference {largest_difference(outputs, stored):.1e}", flush=True)
        if options.output:
            save_file(stored | outputs, options.output / file)
    for name, record in FACTS.items():
        file = f"{name}.json"
        stored = json.loads((RECORDINGS / file).read_text(encoding="utf-8"))
        found = record(stored)
        print(f"{file:40} {'equal' if found == stored else 'DIFFERENT'}", flush=True)
        if options.output:
            (options.output / file).write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
