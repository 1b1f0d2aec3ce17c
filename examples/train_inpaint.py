"""Fine-tune a text-to-image model, or continue with an inpainting one, to paint what a mask leaves out.

    accelerate launch examples/train_inpaint.py --dataset_name shapes --output_dir runs/inpaint --max_train_steps 3000

The same as `glide train inpaint`. See docs/training.md.
"""

import sys

from glide_cli.train import main


if __name__ == "__main__":
    sys.exit(main("inpaint"))
