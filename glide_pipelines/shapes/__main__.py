"""`python -m glide_pipelines.shapes`: prints how often the judge is right."""

import argparse

from .calibration import calibrate, calibration_table


def main() -> None:
    """Calibrate the judge and print the table."""
    parser = argparse.ArgumentParser(prog="python -m glide_pipelines.shapes", description="Calibrate the judge.")
    parser.add_argument("--scenes", type=int, default=2000, help="number of scenes (default: 2000)")
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 128], help="picture widths (default: 32 128)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes (default: 0)")
    parser.add_argument("--show", type=int, default=0, help="print this many of the mistakes (default: 0)")
    args = parser.parse_args()
    print(calibration_table(calibrate(args.scenes, args.sizes, args.seed, args.show)))


if __name__ == "__main__":
    main()
