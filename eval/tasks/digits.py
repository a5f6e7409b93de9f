"""scikit-learn's bundled handwritten digits: the offline default, 8 × 8 images of values 0 to 16."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import datasets

from eval.tasks.image_classification import ImageClassification
from quant.models.digits import digits_split


@dataclass(frozen=True)
class Digits(ImageClassification):
    """The fixed, stratified splits of `quant.models.digits`; --data may still name a folder in the same form."""

    def load(
        self,
        data: str | Path | None = None,
        split: str = "validation",
        *,
        columns: tuple[str, ...] | None = None,
        label_column: str | None = None,
    ) -> datasets.Dataset:
        """Return one split of the digits: "image" (8, 8) and "label"."""
        if data is not None and str(data) != "digits":
            return super().load(data, split, columns=columns, label_column=label_column)
        images, labels = digits_split(split)
        features = datasets.Features(
            {"image": datasets.Array2D((8, 8), "uint8"), "label": datasets.ClassLabel(num_classes=10)}
        )
        return datasets.Dataset.from_dict({"image": images, "label": labels}, features=features)


DIGITS = Digits(
    name="digits",
    columns=("image",),
    label_column="label",
    head="image-classification",
    problem_type="single_label_classification",
    metric_names=("accuracy",),
    default_data="digits",
    default_length=None,
    training_metric="accuracy",
)
