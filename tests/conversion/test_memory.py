"""Converting the released pair takes little more memory than its larger network."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from small import CHANNELS, ROOT, arguments
from tokenizers.pre_tokenizers import ByteLevel

from glide_pipelines import GLIDETextConfig, GLIDETextEncoder, GLIDEUNet2DConditionModel
from glide_pipelines.conversion.state_dicts import to_glide


SIZES = {
    "base": ((192, 384, 576, 768), (1, 2, 3), 3),
    "upsample": ((192, 192, 384, 384, 768, 768), (3, 4, 5), 2),
}
# Runs a script and tells its peak, in bytes: that of the process's own memory, since the one of getrusage is inherited
# from the process that started it.
MEASURE = """
import re, runpy, sys
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert end.code == 0
print("peak", 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read()).group(1)))
"""


@pytest.fixture(scope="module")
def released():
    """A pair of the released sizes, with random values, and a tokenizer of as many entries; 3 GB, removed after."""
    folder = Path(tempfile.mkdtemp(prefix="glide-released-"))
    try:
        if shutil.disk_usage(folder).free < 12e9:
            pytest.skip("12 GB of free disk are needed for temporary files")
        for kind, size in SIZES.items():
            config = GLIDEUNet2DConditionModel.glide_config(*size, 512, CHANNELS[kind])
            with torch.device("meta"):
                networks = GLIDEUNet2DConditionModel(**config), GLIDETextEncoder(GLIDETextConfig())
            shapes = {key: tensor.shape for key, tensor in to_glide(*networks).items()}
            torch.save({key: torch.rand(shape) for key, shape in shapes.items()}, folder / f"{kind}.pt")
        tokens = [*sorted(ByteLevel.alphabet()), *map(str, range(100_000, 150_000)), "<|endoftext|>"]
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer/vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
        (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n")
        yield folder
    finally:
        shutil.rmtree(folder)


def peak(script: str, **options) -> int:
    command = [sys.executable, "-c", MEASURE, ROOT / "conversion" / script, *arguments(**options)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return int(result.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_peak_memory(released, dtype):
    larger = (released / "upsample.pt").stat().st_size
    limit = 1.2 * larger + 1e9
    folder = released / dtype
    there = peak(
        "convert_glide_to_diffusers.py",
        checkpoint_path=released / "base.pt",
        super_res_checkpoint_path=released / "upsample.pt",
        tokenizer=released / "tokenizer",
        dump_path=folder,
        dtype=dtype,
    )
    back = peak("convert_diffusers_to_glide.py", model_path=folder, dump_path=released / "back")
    print(f"{dtype}: peak {there / 1e9:.2f} GB, on the way back {back / 1e9:.2f} GB; limit {limit / 1e9:.2f} GB")
    assert there < limit
    for name in ("base.pt", "upsample.pt"):
        original, result = (
            torch.load(path, weights_only=True, mmap=True) for path in (released / name, released / "back" / name)
        )
        assert list(result) == list(original)
        stored = getattr(torch, dtype)
        assert all(torch.equal(result[key], tensor.to(stored).float()) for key, tensor in original.items())
    for made in (folder, released / "back"):
        shutil.rmtree(made)
