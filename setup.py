"""Packaging of glide-pipelines."""

import re
from pathlib import Path

from setuptools import find_packages, setup


ROOT = Path(__file__).parent

# Read, not imported: importing the package would need torch at build time.
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "glide_pipelines/version.py").read_text()).group(1)

# Where the repository is on the web: set it when it has a place there. README's links lead to it from an index page
# then, as do those of the documentation that leave docs/ (tools/site_hooks.py).
REPOSITORY = ""

# The lowest versions of diffusers, transformers and huggingface_hub are those that the tests run with in `.ci/run`.
REQUIRES = [
    "accelerate>=1.10",
    "diffusers>=0.40",
    "filelock>=3.12",
    "fsspec>=2024.2",
    "ftfy>=6.1",
    "huggingface_hub>=1.31",
    "numpy>=2.0",
    "pillow>=10.1",
    "safetensors>=0.8",
    "tokenizers>=0.23.1",
    "torch>=2.7",
    "tqdm>=4.66",
    "transformers>=5.23,!=5.24.0",  # 5.24.0 adds LoRA only with a peft that is not released
]

EXTRAS = {
    "train": ["datasets>=4.0", "peft>=0.20", "pyarrow>=15.0"],
    "eval": ["datasets>=4.0", "matplotlib>=3.9", "pyarrow>=15.0", "torch-fidelity>=0.3", "torchmetrics>=1.6"],
    "app": ["gradio>=6.31"],
    "docs": [
        "ipykernel>=7.0",
        "mkdocs-jupyter>=0.26",
        "mkdocs-material>=9.7",
        "mkdocstrings[python]>=1.0",
        "nbclient>=0.10",
    ],
    "test": [
        "aiohttp>=3.10",
        "datasets>=4.0",
        "hypothesis>=6.100",
        "matplotlib>=3.9",
        "mypy>=2.4",
        "packaging>=24.0",
        "peft>=0.20",
        "pytest>=8.0",
        "pytest-xdist>=3.6",
        "ruff>=0.12",
        "setuptools>=77",
        "torchmetrics>=1.6",
    ],
}


def readme() -> str:
    """README with links that lead to the repository from anywhere."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    if not REPOSITORY:
        return text
    text = re.sub(r"(!\[[^\]]*\])\((?!https?:)([^)]+)\)", rf"\1({REPOSITORY}/raw/main/\2)", text)
    return re.sub(r"\]\((?!https?:|#)([^)]+)\)", rf"]({REPOSITORY}/blob/main/\1)", text)


setup(
    name="glide-pipelines",
    version=VERSION,
    description="GLIDE (arXiv 2112.10741) as diffusers pipelines: sample, convert the released weights, train.",
    long_description=readme(),
    long_description_content_type="text/markdown",
    project_urls={"Source": REPOSITORY, "Changes": f"{REPOSITORY}/blob/main/CHANGELOG.md"} if REPOSITORY else {},
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    keywords="diffusion text-to-image GLIDE diffusers pytorch",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    install_requires=REQUIRES,
    extras_require=EXTRAS,
    packages=find_packages(include=["glide_cli", "glide_cli.*", "glide_pipelines", "glide_pipelines.*"]),
    package_data={
        "glide_cli": ["model_configs/*.json"],
        "glide_pipelines": ["py.typed", "checkpoints/**", "emoji/*.md", "emoji/*.txt"],
    },
    entry_points={"console_scripts": ["glide = glide_cli:main"]},
)
