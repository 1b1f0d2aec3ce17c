"""The programs of examples/ and tools/: what is wrong with their options is said in one line."""

import re

import pytest
from scripts import ROOT, load_script


# Training is started by accelerate, and the recordings are not for users.
OTHERS = {"train_text_to_image", "train_inpaint", "train_noised_clip", "train_shapes_text_encoder", "record_parity"}
PROGRAMS = [
    (folder, path.stem)
    for folder in ("examples", "tools")
    for path in sorted((ROOT / folder).glob("*.py"))
    if path.stem not in OTHERS
]


@pytest.mark.parametrize(("folder", "name"), PROGRAMS)
def test_bad_options_are_refused_in_one_line(folder, name, capsys):
    assert load_script(name, folder).main(["--nosuch"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(r"\w+\.py: error: .*(--nosuch|--output).*\n", err)
