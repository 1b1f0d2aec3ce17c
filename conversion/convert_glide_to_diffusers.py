"""Convert OpenAI's GLIDE checkpoints to a folder that the pipelines for drawing, inpainting and CLIP guidance open."""

import argparse
from collections.abc import Sequence

from glide_pipelines.conversion import convert_glide_to_diffusers
from glide_pipelines.conversion.convert import DTYPES
from glide_pipelines.conversion.script import ScriptParser


def build_parser() -> ScriptParser:
    parser = ScriptParser(
        description=__doc__,
        epilog="example: %(prog)s --checkpoint_path base --super_res_checkpoint_path upsample --dump_path glide",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        argument_default=argparse.SUPPRESS,  # the library's defaults
        allow_abbrev=False,
    )
    parser.add_argument("--dump_path", required=True, help="the folder to write; it must be empty or not exist")
    parser.add_argument(
        "--checkpoint_path",
        required=True,
        help="the base model: a file in the layout of OpenAI's base.pt, or base or base-inpaint, which is downloaded",
    )
    parser.add_argument(
        "--super_res_checkpoint_path",
        help="the upsampler: a file in the layout of upsample.pt, or upsample or upsample-inpaint; may be left out",
    )
    parser.add_argument(
        "--tokenizer",
        default="openai-community/gpt2",
        help="a folder with vocab.json and merges.txt, or a repository on the Hugging Face Hub",
    )
    parser.add_argument(
        "--attention_head_dim",
        type=int,
        default=64,
        help="channels per attention head of the UNets; no file shows it, and a wrong number makes wrong pictures "
        "without an error. 64 is right for OpenAI's models and all that are fine-tuned from them",
    )
    parser.add_argument(
        "--text_num_attention_heads",
        type=int,
        help="heads of the text encoders; no file shows it either. Without it they are 64 channels wide, as released",
    )
    parser.add_argument("--image_size", type=int, default=64, help="height and width of the base picture, in pixels")
    parser.add_argument("--super_res_image_size", type=int, default=256, help="the same of the enlarged picture")
    for tower in ("text", "image"):
        parser.add_argument(
            f"--clip_{tower}_checkpoint_path",
            help=f"the {tower} tower of the noised CLIP: a file in the layout of clip_{tower}_enc.pt, or "
            f"clip-{tower}-enc, which is downloaded; with both towers the folder is one for CLIPGuidedPipeline",
        )
    parser.add_argument(
        "--clip_tokenizer",
        default="openai/clip-vit-base-patch32",
        help="a folder with CLIP's vocab.json and merges.txt, or a repository on the Hugging Face Hub",
    )
    parser.add_argument(
        "--clip_attention_head_dim", type=int, default=64, help="channels per attention head of the noised CLIP"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="number format of the written weights")
    parser.add_argument("--variant", help="goes into the names of the weight files, for example fp16")
    parser.add_argument("--push_to_hub", metavar="REPO_ID", help="also upload the folder to this repository")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    folder = build_parser().run(convert_glide_to_diffusers, argv)
    print(f"Wrote {folder}")


if __name__ == "__main__":
    main()
