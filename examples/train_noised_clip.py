"""Train a CLIP on noised images, whose gradient can guide a diffusion model.

    accelerate launch examples/train_noised_clip.py --dataset_name shapes --output_dir runs/clip --max_train_steps 2000

The same as `glide train noised-clip`. See docs/training.md.
"""

import sys

from glide_cli.train import main


if __name__ == "__main__":
    sys.exit(main("noised-clip"))
