"""The programs of examples/: what is wrong with their options is said in one line."""

import re

import pytest
from scripts import ROOT, load_script


PROGRAMS = [path.stem for path in sorted((ROOT / "examples").glob("*.py")) if not path.stem.startswith("train_")]


@pytest.mark.parametrize("name", [*PROGRAMS, "train_shapes_features"])
def test_bad_options_are_refused_in_one_line(name, capsys):
    if name == "app":
        pytest.importorskip("gradio", reason="the app needs `pip install glide-pipelines[app]`")
    assert load_script(name).main(["--nosuch"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(r"\w+\.py: error: .*(--nosuch|--output).*\n", err)
