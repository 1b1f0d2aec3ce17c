r"""Train GLIDE's base model or its upsampler, from scratch or from an existing pipeline.

    accelerate launch examples/train_text_to_image.py --dataset_name shapes --output_dir runs/base \
        --max_train_steps 8000

The same as `glide train text-to-image`. See docs/training.md.
"""

import sys

from glide_cli.train import main


if __name__ == "__main__":
    sys.exit(main("text-to-image"))
