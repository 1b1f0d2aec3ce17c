"""Small models in the layout of OpenAI's released files."""

import pytest
from small import PAIRS, write_checkpoint, write_clip, write_tokenizer


@pytest.fixture(scope="module", params=PAIRS, ids=["text-to-image", "inpaint"])
def pair(request):
    return request.param


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The four kinds of checkpoints, both towers of a noised CLIP, and a tokenizer."""
    folder = tmp_path_factory.mktemp("released")
    for pair in PAIRS:
        for seed, kind in enumerate(pair):
            write_checkpoint(folder, kind, seed=seed)
    write_tokenizer(folder)
    write_clip(folder)
    return folder
