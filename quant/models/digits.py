"""The offline default model and data: scikit-learn's handwritten digits and a small ViT trained on them at first use.

It stands beside `pretrained.py`, which gives this model under the name "digits"; the demo and the tests run on it
without a network.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import sklearn
import torch
import transformers
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm
from transformers import ViTConfig, ViTForImageClassification
from transformers.image_processing_utils import BaseImageProcessor

SPLITS = ("train", "validation", "test")
IMAGE_SIZE, MAX_PIXEL, NUM_LABELS = 8, 16, 10
NUM_VALIDATION, NUM_TEST, SPLIT_SEED = 180, 360, 0


@dataclass(frozen=True)
class DigitsSettings:
    """How the demo's ViT is built and trained; with the versions of the libraries it names the cached folder."""

    hidden_size: int = 128  # wide enough for INT8 products to be faster than float ones
    num_layers: int = 4
    num_heads: int = 4  # of 32: a head size that TensorRT's fused INT8 attention takes
    patch_size: int = 2
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    initializer_range: float = 0.08  # about 1 / sqrt(hidden_size): ViT's 0.02 learns slowly at this width
    rotation: float = 0.2  # largest rotation and shear of an augmented image, in radians
    scaling: float = 0.1
    shift: float = 0.5  # in pixels
    seed: int = 0

    @property
    def digest(self) -> str:
        """Return 12 hexadecimal digits over these settings and the versions that shape the trained weights."""
        versions = {package.__name__: package.__version__ for package in (sklearn, torch, transformers)}
        text = json.dumps({"settings": asdict(self), "versions": versions}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def digits_split(split: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the images and labels of one split of scikit-learn's digits: fixed, disjoint, stratified by label.

    Args:
        split: "train" (1,257 images), "validation" (180) or "test" (360).
    Returns: images, shape (N, 8, 8), uint8 in 0..16; labels, shape (N,), int64 in 0..9.
    Raises: ValueError: for another split.
    """
    if split not in SPLITS:
        raise ValueError(f"digits has no split {split!r}; it has {', '.join(SPLITS)}")
    digits = load_digits()
    labels = digits.target.astype(np.int64)
    rest, test = train_test_split(np.arange(len(labels)), test_size=NUM_TEST, random_state=SPLIT_SEED, stratify=labels)
    train, validation = train_test_split(rest, test_size=NUM_VALIDATION, random_state=SPLIT_SEED, stratify=labels[rest])
    chosen = np.sort({"train": train, "validation": validation, "test": test}[split])
    return digits.images[chosen].astype(np.uint8), labels[chosen]


def digits_processor() -> BaseImageProcessor:
    """Return the image processor of the digits model: one channel of 8 by 8, 0..16 brought to -1..1."""
    # The PIL backend by its own module: the plain name warns where torchvision is not installed.
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return ViTImageProcessorPil(
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        rescale_factor=1 / MAX_PIXEL,
        image_mean=[0.5],
        image_std=[0.5],
    )


def digits_config(settings: DigitsSettings) -> ViTConfig:
    """Return the configuration of the digits model."""
    return ViTConfig(
        image_size=IMAGE_SIZE, patch_size=settings.patch_size, num_channels=1,
        initializer_range=settings.initializer_range,
        hidden_size=settings.hidden_size, num_hidden_layers=settings.num_layers, num_attention_heads=settings.num_heads,
        intermediate_size=4 * settings.hidden_size, id2label={i: str(i) for i in range(NUM_LABELS)},
        label2id={str(i): i for i in range(NUM_LABELS)},
    )  # fmt: skip


def digits_folder(settings: DigitsSettings | None = None, cache: Path | None = None) -> Path:
    """Return the folder of the trained digits model, training it at the first call (under a minute on one core).

    Args:
        settings: how to train; default the demo's.
        cache: where folders are kept; default ~/.cache/int8kit.
    Returns: a folder as `save_pretrained` writes it, put there whole or not at all.
    """
    settings = settings or DigitsSettings()
    folder = (cache or Path.home() / ".cache" / "int8kit") / f"digits-{settings.digest}"
    if (folder / "config.json").is_file():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".partial", dir=folder.parent))
    try:
        train_digits(settings).save_pretrained(partial)
        digits_processor().save_pretrained(partial)
        partial.chmod(0o755)  # mkdtemp's own mode shuts others out
        try:
            partial.rename(folder)
        except OSError:
            if not (folder / "config.json").is_file():  # else another process trained it meanwhile: the same model
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def train_digits(settings: DigitsSettings) -> ViTForImageClassification:
    """Return the ViT trained on the digits' train split, in eval mode; the caller's random state is left as it was."""
    images, labels = digits_split("train")
    pixels = digits_processor()(list(images[..., None]), return_tensors="pt", input_data_format="channels_last")[
        "pixel_values"
    ]
    targets = torch.from_numpy(labels)
    with torch.random.fork_rng(devices=[]), _one_thread():
        torch.manual_seed(settings.seed)
        model = ViTForImageClassification(digits_config(settings)).train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
        steps = settings.epochs * -(-len(targets) // settings.batch_size)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, settings.learning_rate, total_steps=steps)
        loss_function = torch.nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)
        with tqdm(total=steps, desc="training the digits ViT (once, then cached)", unit="step") as progress:
            for _ in range(settings.epochs):
                for batch in torch.randperm(len(targets)).split(settings.batch_size):
                    loss = loss_function(model(pixel_values=distort(pixels[batch], settings)).logits, targets[batch])
                    optimizer.zero_grad()
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                    optimizer.step()
                    schedule.step()
                    progress.update()
    return model.eval()


@contextmanager
def _one_thread() -> Iterator[None]:
    """Train on one thread: the same weights whatever the number of cores, and no spinning where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def distort(pixels: torch.Tensor, settings: DigitsSettings) -> torch.Tensor:
    """Return the images, shape (B, 1, 8, 8), each rotated, sheared, scaled and moved a little, at random."""
    count = len(pixels)
    angle, shear = (2 * torch.rand(2, count) - 1) * settings.rotation
    scale_x, scale_y = 1 + (2 * torch.rand(2, count) - 1) * settings.scaling
    shift_x, shift_y = (2 * torch.rand(2, count) - 1) * settings.shift * 2 / IMAGE_SIZE  # the grid spans -1..1
    rows = (
        torch.stack([angle.cos() * scale_x, shear - angle.sin(), shift_x], dim=-1),
        torch.stack([angle.sin(), angle.cos() * scale_y, shift_y], dim=-1),
    )
    grid = torch.nn.functional.affine_grid(torch.stack(rows, dim=1), list(pixels.shape), align_corners=False)
    # What comes in from outside is 0, so black (-1) is brought to 0 and back.
    return torch.nn.functional.grid_sample(pixels + 1, grid, align_corners=False) - 1
