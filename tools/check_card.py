"""Check and measure the package on a CUDA device, in less than four minutes.

    git clone https://github.com/openai/glide-text2im
    python tools/check_card.py --against glide-text2im --output card

Results first: Triton's kernels and real CUDA graphs pass the tests that a CPU runs in an interpreter and with a
stand-in; at the released size images with graphs equal those without, and in 16 bits are as near to those of float32;
the checkpoint that ships gives on the device what it gives on the CPU. Then time: each figure that
docs/performance.md names for a GPU, and the kernels that a step spends its time in. (Capturing is timed with Triton's
kernels compiled.) It ends with the goals and whether they are reached; the exit code is 1 if a check failed. What does
not fit into the time is left out by name.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from pathlib import Path

import torch

from glide_cli import Parser, UserError, script
from glide_pipelines import GLIDEPipeline, shapes_checkpoint
from glide_pipelines.evaluation.benchmark import TimedPipeline, random_pipeline


SECONDS = 225
ROOT = Path(__file__).parent.parent
# Names of the figures, the options that measure them, and how long they take at most.
FIGURES = {
    "127-steps": (["--whole-image", "--repeats", "3"], 50),
    "20-steps": (["--whole-image", "--repeats", "3", "--steps", "10", "--super-res-steps", "10"], 35),
    "batch-16": (["--whole-image", "--repeats", "1", "--batch-size", "16"], 40),
    "127-steps-without-graphs": (["--whole-image", "--repeats", "3", "--no-cuda-graphs"], 35),
    "batch-4": (["--whole-image", "--repeats", "1", "--batch-size", "4"], 30),
    "batch-64": (["--whole-image", "--repeats", "1", "--batch-size", "64", "--steps", "10"], 45),
}
AGAINST = {
    "original": (["--whole-image", "--repeats", "2"], 60),
    "original-batch-16": (["--repeats", "1", "--batch-size", "16"], 45),
}


class Card:
    """Runs checks for as long as there is time, and remembers what came out."""

    def __init__(self, output: Path) -> None:
        self.output = output
        self.start = time.monotonic()
        self.failed: list[str] = []

    @property
    def seconds_left(self) -> float:
        return SECONDS - (time.monotonic() - self.start)

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.start:5.1f} s] {text}", flush=True)

    def check(self, name: str, passed: bool, found: str) -> None:
        self.say(f"{'ok    ' if passed else 'FAILED'} {name}: {found}")
        if not passed:
            self.failed.append(name)

    def command(self, name: str, words: list[str], needs: float) -> bool:
        """Run a command of Python; its output goes to a file. False where the time or the command fails."""
        if self.seconds_left < needs:
            self.say(f"left out: {name}, which may take {needs:.0f} s")
            return False
        limit = min(2 * needs, self.seconds_left)
        with open(self.output / f"{name}.txt", "w", encoding="utf-8") as file:
            try:
                run = [sys.executable, "-m", *words]
                code = subprocess.run(run, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, timeout=limit).returncode
            except subprocess.TimeoutExpired:
                code = -1
        self.check(name, code == 0, str(self.output / f"{name}.txt"))
        return code == 0

    def benchmark(self, name: str, options: list[str], needs: float) -> dict:
        """The figures of `glide benchmark`; none where it did not run."""
        file = self.output.resolve() / f"{name}.json"
        words = ["glide_cli", "benchmark", "--device", "cuda", "--dtype", "bfloat16", "--output", str(file)]
        return json.loads(file.read_text()) if self.command(name, [*words, *options], needs) else {}


class Warnings(logging.Handler):
    """Keeps the texts of warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@torch.no_grad()
def check_images(card: Card) -> None:
    """Images with graphs against those without, and those of the device against those of the CPU."""

    def image(pipe: GLIDEPipeline, **inputs: object) -> torch.Tensor:
        pipe.set_progress_bar_config(disable=True)
        steps = {"num_inference_steps": 10, "super_res_num_inference_steps": 10}
        return pipe(**inputs, **steps, generator=torch.Generator().manual_seed(0), output_type="pt").images.cpu()

    def distance(images: torch.Tensor, others: torch.Tensor) -> float:
        return (images - others).abs().mean().item()

    warnings = Warnings()
    logging.getLogger("glide_pipelines").addHandler(warnings)
    # TensorFloat-32 would round float32 to three digits, each way in its own order.
    torch.backends.cudnn.allow_tf32 = False
    texts: dict[str, torch.Tensor] = {}
    images: dict[torch.dtype, torch.Tensor] = {}
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        torch.manual_seed(0)
        pipe = random_pipeline(torch.device("cuda"), torch.float32).to(dtype)
        texts = texts or TimedPipeline(pipe).embeds
        embeds = {name: each.to(dtype) for name, each in texts.items()}
        images[dtype] = image(pipe, **embeds)
        pipe.enable_cuda_graphs()
        start = time.perf_counter()
        first = image(pipe, **embeds)
        seconds = time.perf_counter() - start
        # Both round, each in its own order.
        rounding = distance(images[dtype], images[torch.float32])
        found = max(distance(each, images[torch.float32]) for each in (first, image(pipe, **embeds)))
        values = f"mean difference from float32 {found:.1e}, without graphs {rounding:.1e}"
        card.check(f"graphs, {dtype}", found <= 1e-3 + 1.5 * rounding, f"{values}; first image {seconds:.1f} s")
        if dtype is torch.bfloat16:
            profile(card, pipe, embeds)
        del pipe
        torch.cuda.empty_cache()
    torch.backends.cudnn.allow_tf32 = True
    pipe = GLIDEPipeline.from_pretrained(shapes_checkpoint())
    on_cpu = image(pipe, prompt="a red circle")
    pipe.to("cuda").enable_cuda_graphs()
    mean = (image(pipe, prompt="a red circle") - on_cpu).abs().mean().item()
    card.check("device against CPU, float32", mean <= 1e-3, f"mean difference {mean:.1e}")
    # A pass that is not captured, or not fused, is only warned of, and its images are right.
    card.check("graphs and fused passes without a warning", not warnings.texts, "; ".join(warnings.texts) or "none")


def profile(card: Card, pipe: GLIDEPipeline, embeds: dict[str, torch.Tensor]) -> None:
    """The kernels that steps of both stages spend their time in, into a file."""
    from torch.profiler import ProfilerActivity

    with torch.profiler.profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        pipe(**embeds, num_inference_steps=3, super_res_num_inference_steps=3, output_type="pt")
        torch.cuda.synchronize()
    table = profiler.key_averages().table(sort_by="cuda_time_total", row_limit=25, max_name_column_width=90)
    (card.output / "kernels.txt").write_text(table)
    card.say(f"kernels: {card.output / 'kernels.txt'}")


@script()
def main(argv: list[str] | None) -> None:
    """Run the checks, the figures, and say which goals are reached."""
    parser = Parser(description=__doc__)
    parser.add_argument("--against", type=Path, help="a clone of openai/glide-text2im to be timed too")
    parser.add_argument("--output", type=Path, default=Path("card"), help="folder of all output (default: card)")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise UserError("there is no CUDA device")
    args.output.mkdir(parents=True, exist_ok=True)
    card = Card(args.output)
    card.say(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, CUDA {torch.version.cuda}")

    pytest = ["pytest", "-q", "-n", "4", "-W", "ignore"]
    card.command("kernel-tests", [*pytest, "tests/models/test_triton_kernels.py", "-k", "not compile"], 40)
    card.command("graph-tests", [*pytest, "tests/sampling/test_graphs.py", "-k", "cuda"], 50)
    check_images(card)
    figures = {name: card.benchmark(name, *how) for name, how in list(FIGURES.items())[:3]}
    if args.against is not None:
        against = ["--against", str(args.against.resolve())]
        figures |= {
            name: card.benchmark(name, [*against, *options], needs) for name, (options, needs) in AGAINST.items()
        }
    figures |= {name: card.benchmark(name, *how) for name, how in list(FIGURES.items())[3:]}

    def whole(name: str) -> dict:
        """The row of the whole image; its rate at batch 16 is what counts there."""
        return next((row for label, row in figures.get(name, {}).get("rows", {}).items() if "an image" in label), {})

    def goal(name: str, value: float | None, most: float, unit: str = "s") -> None:
        if value is not None:
            card.say(f"goal {'reached' if value <= most else 'missed '}: {name}: {value:.3g} {unit} (at most {most})")

    goal("100 + 27 steps, bf16", whole("127-steps").get("seconds"), 0.35)
    goal("10 + 10 steps, bf16", whole("20-steps").get("seconds"), 0.09)
    goal("capturing", figures["127-steps"].get("compile_seconds"), 5)
    batch = whole("batch-16")
    if batch:
        limit = batch["flops"] / figures["batch-16"]["matmul_flops_per_second"]
        goal("batch 16, times the limit of the matrix rate", batch["seconds"] / limit, 1 / 0.45, "times")
    if "ratio" in whole("original"):
        card.say(f"the original takes {whole('original')['ratio']:.1f} times as long")
    if card.failed:
        print(f"failed: {', '.join(card.failed)}")
        raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main())
