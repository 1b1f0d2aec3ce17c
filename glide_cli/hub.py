"""A trained model on the Hub, with a card that says what it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import HfApi


if TYPE_CHECKING:
    from huggingface_hub import ModelCard


def training_card(
    repo_id: str, loaded_as: str, data: str, facts: Mapping[str, Any], pipeline_tag: str = "text-to-image"
) -> ModelCard:
    """The card of a trained model.

    Args:
        repo_id (`str`): Its repository.
        loaded_as (`str`): The class of glide_pipelines that opens it.
        data (`str`): What it was trained on.
        facts (`Mapping[str, Any]`): How, as names and values.
        pipeline_tag (`str`, defaults to `"text-to-image"`): The Hub's name of the task.
    """
    from glide_pipelines.conversion.model_card import model_card
    from glide_pipelines.markdown import markdown_table

    sections = {
        "": f"Trained on {data} with glide-pipelines.",
        "Use": f"```python\nfrom glide_pipelines import {loaded_as}\n\n"
        f'model = {loaded_as}.from_pretrained("{repo_id}")\n```',
        "Training": markdown_table(["setting", "value"], [[name, str(value)] for name, value in facts.items()]),
    }
    return model_card(repo_id, sections, license="unknown", pipeline_tag=pipeline_tag)


def push_to_hub(folder: Path, repo_id: str, card: ModelCard) -> str:
    """Upload a folder, and the card unless the repository has one already.

    (`DiffusionPipeline.push_to_hub` would save the pipeline again, write a card that says nothing of it, and cannot
    upload an upsampler whose base is still to come.)

    Returns:
        `str`: The address of the commit.
    """
    api = HfApi()
    api.create_repo(repo_id, exist_ok=True)
    if not api.file_exists(repo_id, "README.md"):
        card.push_to_hub(repo_id)
    return str(api.upload_folder(repo_id=repo_id, folder_path=folder))
