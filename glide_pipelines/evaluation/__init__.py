"""Measures generated pictures as the paper does: FID, Inception score, precision and recall, CLIP score."""

from .features import Features, load_clip, load_feature_network, load_noised_clip
from .metrics import frechet_distance, inception_score, precision_recall
from .pictures import CaptionedPictures, DatasetPictures, ShapesPictures
from .report import plot_guidance, plot_steps, steps_table, table, write_report
from .shapes_features import ShapesFeatures, accuracy, train_shapes_features
from .sweep import (
    BOTH,
    CLASSIFIER_FREE,
    CLIP,
    DrawnPictures,
    Guidance,
    Measured,
    Point,
    Sampling,
    draw_pictures,
    figures,
    join_processes,
    measure,
    picture_size,
    run_sweep,
)


__all__ = [
    "BOTH",
    "CLASSIFIER_FREE",
    "CLIP",
    "CaptionedPictures",
    "DatasetPictures",
    "DrawnPictures",
    "Features",
    "Guidance",
    "Measured",
    "Point",
    "Sampling",
    "ShapesFeatures",
    "ShapesPictures",
    "accuracy",
    "draw_pictures",
    "figures",
    "frechet_distance",
    "inception_score",
    "join_processes",
    "load_clip",
    "load_feature_network",
    "load_noised_clip",
    "measure",
    "picture_size",
    "plot_guidance",
    "plot_steps",
    "precision_recall",
    "run_sweep",
    "steps_table",
    "table",
    "train_shapes_features",
    "write_report",
]
