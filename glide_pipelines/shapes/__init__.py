"""The shapes world: captioned scenes without end, their images, and a judge of images against captions."""

from .captions import Caption, Mention, describe, describe_fully, knows, parse, prompt_warning
from .dataset import Example, ShapesWorld
from .detect import Detection, Found, detect
from .judge import ObjectVerdict, Verdict, judge
from .render import render, render_sizes
from .scene import BACKGROUNDS, COLOURS, PLACES, RELATIONS, SHAPES, SIZES, Object, Scene, sample_scene
from .source import ShapesSource
from .tokenizer import train_tokenizer


__all__ = [
    "BACKGROUNDS",
    "COLOURS",
    "PLACES",
    "RELATIONS",
    "SHAPES",
    "SIZES",
    "Caption",
    "Detection",
    "Example",
    "Found",
    "Mention",
    "Object",
    "ObjectVerdict",
    "Scene",
    "ShapesSource",
    "ShapesWorld",
    "Verdict",
    "describe",
    "describe_fully",
    "detect",
    "judge",
    "knows",
    "parse",
    "prompt_warning",
    "render",
    "render_sizes",
    "sample_scene",
    "train_tokenizer",
]
