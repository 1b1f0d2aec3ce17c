"""Teach the shapes world's text encoder to read, before the base model is trained with it.

    python examples/train_shapes_text_encoder.py --output_dir runs/text_encoder
    accelerate launch examples/train_text_to_image.py --text_encoder_name_or_path runs/text_encoder ...

See docs/training.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tqdm.auto import tqdm
from train_text_to_image import MODEL_CONFIGS, new_text_encoder, new_tokenizer

import glide_cli
from glide_pipelines.training.arguments import read_sizes, run_script
from glide_pipelines.training.reading import train_reading


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = glide_cli.Parser(description=__doc__)
    add = parser.add_argument
    add("--output_dir", type=Path, required=True, help="folder of the text encoder and its tokenizer")
    add("--model_config", type=Path, default=MODEL_CONFIGS / "shapes_base.json", help="JSON with its sizes")
    add("--max_train_steps", type=glide_cli.positive_int, default=1000, help="default: %(default)s")
    add("--train_batch_size", type=glide_cli.positive_int, default=96, help="default: %(default)s")
    add("--learning_rate", type=float, default=1e-3, help="decays to 0 (default: %(default)s)")
    add("--seed", type=glide_cli.seed, default=0, help="default: %(default)s")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    torch.manual_seed(args.seed)
    sizes = read_sizes(args.model_config, "text_encoder")["text_encoder"]
    tokenizer = new_tokenizer(args.output_dir, sizes["max_position_embeddings"])
    text_encoder = new_text_encoder(tokenizer, sizes)
    with tqdm(total=args.max_train_steps, mininterval=5) as bar:

        def report(step: int, loss: float, shares: dict[str, float]) -> None:
            bar.update()
            if step % 50 == 0:
                wrong = {name: f"{1 - share:.3f}" for name, share in shares.items()}
                bar.set_postfix(loss=f"{loss:.3f}", **wrong, refresh=False)

        train_reading(
            text_encoder,
            tokenizer,
            args.max_train_steps,
            args.train_batch_size,
            args.learning_rate,
            args.seed,
            report,
        )
    text_encoder.save_pretrained(args.output_dir)


if __name__ == "__main__":
    run_script(main)
