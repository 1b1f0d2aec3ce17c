"""Pretrain the shapes world's text encoder on captions, before the base model is trained with it.

    python examples/train_shapes_text_encoder.py --output_dir runs/text_encoder
    accelerate launch examples/train_text_to_image.py --dataset_name shapes \\
        --text_encoder_name_or_path runs/text_encoder ...

See docs/training.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from glide_cli import Parser, exit_code
from glide_cli.options import positive_int, seed
from glide_cli.train_options import MODEL_CONFIGS, read_sizes


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = Parser(description=__doc__)
    add = parser.add_argument
    add("--output_dir", type=Path, required=True, help="folder of the text encoder and its tokenizer")
    add("--model_config", type=Path, default=MODEL_CONFIGS / "shapes_base.json", help="JSON with its sizes")
    add("--max_train_steps", type=positive_int, default=1000, help="default: %(default)s")
    add("--train_batch_size", type=positive_int, default=96, help="default: %(default)s")
    add("--learning_rate", type=float, default=1e-3, help="decays to 0 (default: %(default)s)")
    add("--seed", type=seed, default=0, help="default: %(default)s")
    return parser.parse_args(argv)


def train(args: argparse.Namespace) -> None:
    """Train and save the text encoder with its tokenizer."""
    import torch
    from tqdm.auto import tqdm
    from transformers import GPT2Tokenizer

    from glide_pipelines.shapes import train_tokenizer
    from glide_pipelines.shapes.reading import pretrain_text_encoder
    from glide_pipelines.training import new_text_encoder

    torch.manual_seed(args.seed)
    sizes = read_sizes(args.model_config, "text_encoder")["text_encoder"]
    train_tokenizer(args.output_dir, model_max_length=sizes["max_position_embeddings"])
    tokenizer = GPT2Tokenizer.from_pretrained(args.output_dir)
    text_encoder = new_text_encoder(tokenizer, **sizes)
    with tqdm(total=args.max_train_steps, mininterval=5) as bar:

        def report(step: int, loss: float, accuracy: dict[str, float]) -> None:
            bar.update()
            if step % 50 == 0:
                wrong = {name: f"{1 - share:.3f}" for name, share in accuracy.items()}
                bar.set_postfix(loss=f"{loss:.3f}", **wrong, refresh=False)

        pretrain_text_encoder(
            text_encoder,
            tokenizer,
            args.max_train_steps,
            args.train_batch_size,
            args.learning_rate,
            args.seed,
            report,
        )
    text_encoder.save_pretrained(args.output_dir)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code, as `glide_cli.exit_code` does."""
    errors = (ValueError, OSError)
    return exit_code("train_shapes_text_encoder.py", lambda: train(parse_args(argv)), errors)


if __name__ == "__main__":
    sys.exit(main())
