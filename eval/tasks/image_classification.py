"""Image classification from a hub id, an image folder, or a table with an image and a label column."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from eval.tasks.classification import ClassificationTask
from eval.tasks.parts.outcome import Arrays, Rows


@dataclass(frozen=True)
class ImageClassification(ClassificationTask):
    """Accuracy of images turned into pixel values by the model's own image processor."""

    def encode(self, rows: Rows, processor: Any, max_length: int | None = None, padding: str = "max") -> Arrays:
        """Return "pixel_values" (N, channels, height, width), float32, and "labels"; lengths do not apply to images."""
        pixels = process_images(processor, list(rows[self.columns[0]]))
        return {"pixel_values": pixels, "labels": self.label_ids(rows[self.label_column])}


def process_images(processor: Any, images: list[Any]) -> np.ndarray:
    """Return pixel values (N, channels, height, width), float32.

    Args:
        processor: an image processor; the length of its `image_mean` says how many channels the model reads.
        images: PIL images, {"bytes": ..., "path": ...} as parquet holds them, or arrays (H, W) or (H, W, channels).
    Raises: ValueError: if the processor is none for images, or an image cannot be decoded (its place is named).
    """
    if processor is None or hasattr(processor, "convert_ids_to_tokens"):
        got = "no processor" if processor is None else f"a tokenizer ({type(processor).__name__})"
        raise ValueError(
            f"this task's samples are images and need an image processor, the model has {got}; choose an image model "
            "or a text task"
        )
    num_channels = len(getattr(processor, "image_mean", None) or (0, 0, 0))
    arrays = [_pixels(image, num_channels, i) for i, image in enumerate(images)]
    encoding = processor(arrays, return_tensors="np", input_data_format="channels_last")
    return np.asarray(encoding["pixel_values"]).astype(np.float32)


def _pixels(image: Any, num_channels: int, number: int) -> np.ndarray:
    """Return one image as (height, width, num_channels)."""
    if isinstance(image, dict):
        source: Any = io.BytesIO(image["bytes"]) if image.get("bytes") else image.get("path")
        try:
            image = Image.open(source)
            image.load()
        except (OSError, UnidentifiedImageError, AttributeError, TypeError) as error:
            raise ValueError(
                f"image {number} ({image.get('path') if isinstance(image, dict) else '?'}) cannot be read: {error}"
            ) from None
    if isinstance(image, Image.Image):
        image = np.asarray(image.convert("L" if num_channels == 1 else "RGB"))
    try:
        array = np.asarray(image)
        if array.dtype == object or array.dtype.kind not in "uif":
            raise ValueError(f"values of type {array.dtype}")
    except ValueError:
        raise ValueError(
            f"image {number} is a {type(image).__name__}, not an image; choose the image column with --column"
        ) from None
    array = array[..., None] if array.ndim == 2 else array
    if array.ndim != 3 or array.shape[-1] not in (1, num_channels):
        raise ValueError(
            f"image {number} has shape {array.shape}; expected (height, width) or (height, width, {num_channels})"
        )
    return np.repeat(array, num_channels, axis=-1) if array.shape[-1] != num_channels else array


IMAGE_CLASSIFICATION = ImageClassification(
    name="image-classification",
    columns=("image",),
    label_column="label",
    head="image-classification",
    problem_type="single_label_classification",
    metric_names=("accuracy",),
    default_length=None,
    aliases={"image": ("img", "pixels"), "label": ("labels", "fine_label")},
    training_metric="accuracy",
)
