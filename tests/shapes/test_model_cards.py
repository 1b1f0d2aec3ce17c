"""The model cards of the checkpoints that ship: written from measured figures, readable by the Hub."""

import json

import pytest
from huggingface_hub import ModelCard
from scripts import load_script

from glide_pipelines import checkpoints
from glide_pipelines.shapes import ShapesWorld
from glide_pipelines.shapes.edit_evaluation import judge_true_edits
from glide_pipelines.shapes.edits import sample_edits
from glide_pipelines.shapes.evaluation import judge_renders
from glide_pipelines.shapes.retrieval import FULL, IDEAL, OWN, TRUE


SETTINGS = {
    "num_captions": 12,
    "steps": "25",
    "super_res_steps": None,
    "scheduler": "GLIDEDDPMScheduler",
    "dtype": "float32",
}


def figures() -> dict[str, dict]:
    """Results as the script that measures them writes them."""
    world = ShapesWorld(0, held_out=True)
    renders = judge_renders([world.example(index) for index in range(12)], 32)
    edits = judge_true_edits(sample_edits(12, 0), 32)
    rate = {"right": 9, "cases": 12, "share": 0.75, "low": 0.5, "high": 0.9}
    rates = dict.fromkeys((FULL, IDEAL, OWN, TRUE), rate)
    return {
        "text-to-image": {
            "settings": SETTINGS,
            "renders": renders,
            "guidance": [{"guidance_scale": 3.0, **renders}],
        },
        "inpaint": {"settings": SETTINGS, "renders": edits, "columns": {"fine-tuned": edits}},
        "noised-clip": {"settings": {}, "timesteps": {"0": rates, "500": rates}},
    }


@pytest.mark.parametrize(
    ("name", "task", "shown"),
    [
        ("text-to-image", "text-to-image", "| whole caption | 12 |"),
        ("inpaint", "image-to-image", "| fine-tuned |"),
        ("noised-clip", "zero-shot-image-classification", "| 500" + " | 75.0 (50.0 to 90.0)" * 4 + " |"),
    ],
)
def test_a_card_holds_its_figures_and_what_the_hub_asks(tmp_path, name, task, shown):
    script = load_script("write_model_cards", folder="tools")
    (tmp_path / name).mkdir()
    (tmp_path / "figures.json").write_text(json.dumps(figures()[name]))
    script.main([f"--{name}", str(tmp_path / "figures.json"), "--output", str(tmp_path)])
    card = ModelCard.load(tmp_path / name / "README.md")
    assert card.data.license == "apache-2.0" and card.data.pipeline_tag == task and "shapes" in card.data.tags
    assert shown in card.text
    for heading in ("Use", "What it was trained on", "What it can do", "What it cannot do", "Licence"):
        assert f"## {heading}\n" in card.text
    assert "## Use\n\n```bash\npip install glide-pipelines\n```\n\n```python" in card.text
    code = card.text.split("```python")[1].split("```")[0]
    compile(code, name, "exec")


def test_the_card_of_the_emoji_names_the_licence_of_their_images(tmp_path):
    row = {"name": "guidance-3", "fid": 12.3, "top1": 81.2, "top5": 95.3}
    results = {"settings": SETTINGS, "real": {"name": "real images", "top1": 99.0, "top5": 100.0}, "sweep": [row]}
    for name, share in (("trained", 81.2), ("held-out", 22.7)):
        (tmp_path / f"{name}.json").write_text(json.dumps({**results, "sweep": [row | {"top1": share}]}))
    folder = tmp_path / "emoji/text-to-image"
    folder.mkdir(parents=True)
    script = load_script("write_model_cards", folder="tools")
    script.main(
        ["--emoji", *(str(tmp_path / f"{name}.json") for name in ("trained", "held-out")), "--output", str(tmp_path)]
    )
    card = ModelCard.load(folder / "README.md")
    assert "emoji" in card.data.tags and card.text.index("81.2") < card.text.index("22.7")
    assert "MIT licence: NOTICE.md" in card.text and "Microsoft" in (folder / "NOTICE.md").read_text()
    compile(card.text.split("```python")[1].split("```")[0], "emoji", "exec")
    (tmp_path / "emoji/noised-clip").mkdir()
    script.main(["--emoji-noised-clip", str(tmp_path / "trained.json"), "--output", str(tmp_path)])
    card = ModelCard.load(tmp_path / "emoji/noised-clip/README.md")
    assert card.data.pipeline_tag == "zero-shot-image-classification" and "81.2" in card.text
    assert 'pretrained_checkpoint("emoji", "noised-clip")' in card.text and "MIT licence: NOTICE.md" in card.text
    compile(card.text.split("```python")[1].split("```")[0], "emoji", "exec")


def test_the_cards_that_ship_are_as_they_would_be_written_today():
    """But for the figures, which take hours."""
    script = load_script("write_model_cards", folder="tools")
    row = {"name": "guidance-1", "fid": 12.3, "top1": 81.2, "top5": 95.3}
    emoji = {"settings": SETTINGS, "real": row, "sweep": [row]}
    results = {name: [each] for name, each in figures().items()}
    results |= {"emoji": [emoji, emoji], "emoji-noised-clip": [emoji]}
    assert results.keys() == script.CARDS.keys()
    for name, card in script.CARDS.items():
        text = (checkpoints.ROOT / card.folder / "README.md").read_text(encoding="utf-8")
        sections = card.sections(*results[name])
        if (checkpoints.ROOT / card.folder / "samples.webp").is_file():
            sections |= script.SAMPLES
        for heading in sections.keys() - {"What it can do"}:
            assert sections[heading] in text, (name, heading)


def test_cards_whose_figures_are_not_given_stay(tmp_path):
    load_script("write_model_cards", folder="tools").main(["--output", str(tmp_path)])
    assert not any(tmp_path.iterdir())
