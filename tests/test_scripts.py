"""The programs of examples/ and tools/: what is wrong with their options is said in one line."""

import re

import pytest
from scripts import ROOT, load_script


TRAININGS = ("text-to-image", "inpaint", "noised-clip")
# What is tested apart, what mkdocs calls, and the recording of the original's numbers, whose error page is argparse's.
OTHERS = {"record_parity", "site_hooks", *(f"train_{name.replace('-', '_')}" for name in TRAININGS)}
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


@pytest.mark.parametrize("training", TRAININGS)
@pytest.mark.parametrize("options", [["--nosuch"], []])
def test_bad_options_of_training_are_refused_in_one_line(training, options, capsys):
    script = f"train_{training.replace('-', '_')}"
    assert load_script(script).main(training, options, f"{script}.py") == 2
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(rf"{script}\.py: error: .*(--nosuch|--output_dir).*\n", err)


@pytest.mark.parametrize("training", TRAININGS)
def test_the_script_of_a_training_is_that_training(training):
    script = (ROOT / "examples" / f"train_{training.replace('-', '_')}.py").read_text()
    assert f'main("{training}")' in script
