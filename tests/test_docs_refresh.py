"""tools/refresh_docs.py: tables of the docs hold what the commands above them print."""

import sys
from pathlib import Path

import pytest
from scripts import ROOT, load_script


refresh = load_script("refresh_docs", folder="tools")

PAGE = """\
# A page

<!-- refresh -->
```bash
echo "| one |"
echo run >> {log}
```

<!-- printed -->
| old |
<!-- end -->

<!-- refresh -->
```
echo picture > {picture}
```

```bash
echo not marked >> {log}
```

<!-- printed -->
not below a marked block
<!-- end -->
"""


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(PAGE.format(log=tmp_path / "log", picture=tmp_path / "picture"))
    return path


def run(page, *options):
    return refresh.main([str(page), "--kept", str(page.parent / "kept"), *options])


def test_a_table_holds_what_the_command_above_it_prints(page, tmp_path):
    before = page.read_text()
    assert run(page) == 0
    assert page.read_text() == before.replace("| old |", "| one |")
    assert (tmp_path / "picture").read_text() == "picture\n"


def test_a_command_is_run_once_and_again_when_asked(page, tmp_path):
    for options in ((), (), ("--again",)):
        assert run(page, *options) == 0
    assert (tmp_path / "log").read_text() == "run\nrun\n"


def test_a_stopped_refresh_goes_on_with_new_output_alone(page, tmp_path):
    last = f"echo picture > {tmp_path / 'picture'}"
    assert run(page) == 0
    page.write_text(page.read_text().replace(last, f"{last}\ntest ! -e {tmp_path / 'stop'}"))
    assert run(page) == 0
    (tmp_path / "stop").touch()
    assert run(page, "--again") == 2
    (tmp_path / "stop").unlink()
    (tmp_path / "picture").unlink()
    assert run(page) == 0
    assert (tmp_path / "picture").exists()
    assert (tmp_path / "log").read_text() == "run\nrun\n"


def test_the_commands_run_in_this_environment(page, tmp_path):
    page.write_text(page.read_text().replace('echo "| one |"', "command -v python"))
    assert run(page) == 0
    assert f"{Path(sys.executable).parent}/python" in page.read_text()


def test_a_command_that_fails_leaves_the_page_as_it_was(page, tmp_path, capfd):
    page.write_text(page.read_text().replace('echo "| one |"', 'echo "| half |"\nfalse'))
    before = page.read_text()
    assert run(page) == 2
    assert page.read_text() == before
    assert "exit code 1 of" in capfd.readouterr().err
    assert not (tmp_path / "kept").exists()


def test_the_list_runs_nothing(page, tmp_path, capsys):
    assert run(page, "--list") == 0
    assert capsys.readouterr().out.startswith('echo "| one |"\n')
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_every_mark_of_the_docs_is_found(page):
    text, found = page.read_text(encoding="utf-8"), list(refresh.blocks(page))
    assert text.count("<!-- refresh -->") == len(found)
    assert text.count("<!-- printed -->") == sum(block["printed"] is not None for block in found)
