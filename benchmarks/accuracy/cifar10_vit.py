"""CIFAR-10: a small ViT trained from scratch on a GPU; float, PTQ and QAT scored in ONNX Runtime on the test images.

    python -m benchmarks.accuracy.cifar10_vit --data DIR --work FOLDER --out benchmarks/results/cifar10.jsonl

DIR holds train.parquet and test.parquet. FOLDER/model becomes the float model, FOLDER/data its splits: train,
validation (5,000 of the training images, never trained on) and test. Everything after the float model is the product's
own commands.
"""

from __future__ import annotations

import argparse
import io
import math
import shutil
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from transformers import ViTConfig, ViTForImageClassification

from benchmarks.commands import SCORE, TRAIN_FLAGS, run, score_checkpoint
from benchmarks.rows import append_row

LABELS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NUM_VALIDATION = 5000
SIZE, WARM_SHARE = 32, 0.05


def make_data(source: Path, folder: Path) -> dict[str, pd.DataFrame]:
    """Write train, validation and test tables with the columns `image` and `label` into `folder`; return them."""
    whole = pd.read_parquet(source / "train.parquet")
    image, label = (next(c for c in whole.columns if c in names) for names in (("img", "image"), ("label", "labels")))
    whole = whole.sample(frac=1, random_state=0)
    splits = {
        "train": whole.iloc[NUM_VALIDATION:],
        "validation": whole.iloc[:NUM_VALIDATION],
        "test": pd.read_parquet(source / "test.parquet"),
    }
    folder.mkdir(parents=True)
    for name, table in splits.items():
        splits[name] = pd.DataFrame({"image": table[image].to_numpy(), "label": table[label].to_numpy()})
        splits[name].to_parquet(folder / f"{name}.parquet", index=False)
    return splits


def pixels(table: pd.DataFrame, device: str) -> tuple[Tensor, Tensor]:
    """Return the images (N, 3, 32, 32) in -1..1 and the labels (N,)."""
    arrays = [np.asarray(Image.open(io.BytesIO(cell["bytes"])).convert("RGB")) for cell in table["image"]]
    images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).to(device)
    return images.float() / 127.5 - 1, torch.from_numpy(table["label"].to_numpy()).to(device)


def augment(images: Tensor) -> Tensor:
    """Return flipped, shifted (4 pixels), recoloured (30 %) and, every second, turned (15 degrees) and scaled images.

    Pixels are taken, not mixed: a model that has only seen interpolated images does worse on the sharp ones.
    """
    n, device = len(images), images.device
    uniform = torch.rand(9, n, device=device) * 2 - 1
    uniform[:3] *= uniform[8] > 0
    turn, scale_x, scale_y = uniform[0] * 0.26, 1 + uniform[1] * 0.15, 1 + uniform[2] * 0.15
    flip = torch.where(uniform[3] > 0, 1.0, -1.0)
    rows = [torch.stack([flip * scale_x * turn.cos(), -scale_y * turn.sin(), uniform[4] * 0.25], 1),
            torch.stack([flip * scale_x * turn.sin(), scale_y * turn.cos(), uniform[5] * 0.25], 1)]  # fmt: skip
    grid = F.affine_grid(torch.stack(rows, 1), list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, mode="nearest", padding_mode="reflection", align_corners=False)
    mean = images.mean((1, 2, 3), keepdim=True)
    return (
        (images - mean) * (1 + 0.3 * uniform[6]).view(-1, 1, 1, 1) + mean + (0.3 * uniform[7]).view(-1, 1, 1, 1)
    ).clamp(-1, 1)


def recolour(images: Tensor) -> Tensor:
    """Return the images after two rounds of one of eight operations, drawn for each, in the manner of RandAugment.

    Source: Cubuk et al. 2020 (arXiv:1909.13719). All operations are computed and one is taken: there is no branch in
    a CUDA graph.
    """
    pick = torch.arange(len(images), device=images.device)
    for _ in range(2):
        strength = torch.rand(len(images), 1, 1, 1, device=images.device)
        levels = (2 + 6 * strength).floor().exp2()
        low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
        grey, blurred = images.mean(1, keepdim=True), F.avg_pool2d(F.pad(images, (1, 1, 1, 1), "reflect"), 3, 1)
        made = (
            images,
            -images,
            torch.where(images > strength, -images, images),  # solarize
            ((images + 1) / 2 * levels).floor() / levels * 2 - 1,  # posterize
            (images - low) / (high - low + 1e-3) * 2 - 1,  # autocontrast
            grey + (images - grey) * 2 * strength,  # saturation
            blurred + (images - blurred) * 3 * strength,  # blur to sharpen
            images * (0.3 + 1.4 * strength),  # contrast
        )
        drawn = torch.randint(len(made), (len(images),), device=images.device)
        images = torch.stack(made)[drawn, pick].clamp(-1, 1)
    return images


def cutmix(images: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for every third batch, images with a box of the reversed batch, and the share that is still their own.

    The batch is in random order, so its reverse is a random partner; all draws stay on the device.
    """
    chosen, kept, top, left = torch.rand(4, device=images.device)
    side = torch.where(chosen < 1 / 3, (SIZE * (1 - kept).sqrt()).floor(), 0.0)
    places = torch.arange(SIZE, device=images.device)
    rows, columns = ((places >= start) & (places < start + side) for start in ((SIZE + 1 - side) * top,
                                                                               (SIZE + 1 - side) * left))  # fmt: skip
    box = rows[:, None] & columns[None, :]
    return torch.where(box, images.flip(0), images), 1 - box.float().mean()


class TrainStep:
    """One optimizer step; on a GPU a CUDA graph, since a step of this size is launches more than arithmetic."""

    def __init__(self, model: ViTForImageClassification, images: Tensor, labels: Tensor, batch_size: int) -> None:
        self.model, self.images, self.labels = model, images, labels
        self.forward = torch.compile(model) if images.is_cuda else model
        self.index = torch.arange(batch_size, device=images.device)
        self.rate = torch.zeros((), device=images.device)
        is_gpu = images.is_cuda
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=self.rate if is_gpu else 0.0, weight_decay=0.05, fused=True, capturable=is_gpu
        )
        self.graph = self._capture() if is_gpu else None

    def compute(self) -> None:
        """Take the step on the images of `index`."""
        batch, own = cutmix(recolour(augment(self.images[self.index])))
        target = self.labels[self.index]
        with torch.autocast(batch.device.type, dtype=torch.bfloat16, cache_enabled=False):
            logits = self.forward(pixel_values=batch).logits.float()
        loss = own * F.cross_entropy(logits, target, label_smoothing=0.1)
        loss = loss + (1 - own) * F.cross_entropy(logits, target.flip(0), label_smoothing=0.1)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=False)

    def _capture(self) -> torch.cuda.CUDAGraph:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):  # with a rate of 0: they allocate, and change no weight
                self.compute()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.compute()
        return graph

    def __call__(self, index: Tensor, rate: float) -> None:
        """Take one step on these images at this rate."""
        self.index.copy_(index)
        if self.graph is not None:
            self.rate.fill_(rate)
            self.graph.replay()
        else:
            self.optimizer.param_groups[0]["lr"] = rate
            self.compute()


def train(splits: dict[str, pd.DataFrame], arguments: argparse.Namespace) -> ViTForImageClassification:
    """Return the trained model."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(arguments.seed)
    images, labels = pixels(splits["train"], device)
    config = ViTConfig(
        image_size=SIZE, patch_size=4, hidden_size=384, num_hidden_layers=7, num_attention_heads=12,
        intermediate_size=384, initializer_range=0.02, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        id2label=dict(enumerate(LABELS)), label2id={name: i for i, name in enumerate(LABELS)},
    )  # fmt: skip
    model = ViTForImageClassification(config).to(device).train()
    step = TrainStep(model, images, labels, arguments.batch_size)
    num_steps = len(images) // arguments.batch_size
    bar = tqdm(range(arguments.epochs), desc="train", unit="epoch", mininterval=5)
    for epoch in bar:
        if epoch % 10 == 5:
            bar.set_postfix(validation=accuracy(model, splits["validation"]))
        order = torch.randperm(len(images), device=device)[: num_steps * arguments.batch_size]
        for number, index in enumerate(order.split(arguments.batch_size)):
            share = (epoch * num_steps + number) / (arguments.epochs * num_steps)
            rise, fall = share / WARM_SHARE, (1 + math.cos(math.pi * (share - WARM_SHARE) / (1 - WARM_SHARE))) / 2
            step(index, arguments.learning_rate * (rise if share < WARM_SHARE else fall))
    return model.eval()


@torch.no_grad()
def accuracy(model: ViTForImageClassification, table: pd.DataFrame) -> float:
    """Return the share of images whose label the float32 model gives."""
    images, labels = pixels(table, str(model.device))
    found = [model(pixel_values=part).logits.argmax(-1) for part in images.split(1000)]
    return float((torch.cat(found) == labels).float().mean())


def train_float(arguments: argparse.Namespace) -> dict[str, object]:
    """Write FOLDER/model and FOLDER/data; return how the float model was made, or which one was given."""
    shutil.rmtree(arguments.work, ignore_errors=True)
    splits, start = make_data(arguments.data, arguments.work / "data"), time.time()
    if arguments.model is not None:
        shutil.copytree(arguments.model, arguments.work / "model")
        return {"given": str(arguments.model)}
    model = train(splits, arguments)
    made = {"epochs": arguments.epochs, "train_seconds": round(time.time() - start)}
    made["test_accuracy_pytorch"] = accuracy(model, splits["test"])
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    processor = ViTImageProcessorPil(size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    model.save_pretrained(arguments.work / "model")
    processor.save_pretrained(arguments.work / "model")
    return made


def quantize(arguments: argparse.Namespace, name: str, log: Path) -> Path:
    """Return the checkpoint of one variant: calibrated, or trained with the recipe."""
    model, data, out = arguments.work / "model", arguments.work / "data", arguments.work / name
    if name == "float":
        return model
    if name == "PTQ":
        calib = f"-m calib --model {model} --samples {data}/train.parquet --column image --recipe {arguments.recipe}"
        run([sys.executable, *calib.split(), "--num-samples", "512", "--json", "--out", str(out)], log)
        return out
    flags = f"""--model {model} --task image-classification --data {data} --recipe {arguments.recipe}
        --max_steps {arguments.steps} --learning_rate 1e-4 --per_device_train_batch_size 128 --seed {arguments.seed}
        --dataloader_num_workers {arguments.workers} --num_samples 512 --out {out}"""
    run([sys.executable, "train_qat.py", *flags.split(), *TRAIN_FLAGS], log)
    return out


def score(arguments: argparse.Namespace, checkpoint: Path, log: Path) -> dict[str, object]:
    """Return what ONNX Runtime makes of the checkpoint on the 10,000 test images."""
    evaluation = f"""--task image-classification --data {arguments.work}/data --split test
        --reference {arguments.work}/model --batch-size 100""".split()
    result = score_checkpoint(checkpoint, arguments.work / f"{checkpoint.name}-engine", evaluation, log)
    return {key: result[key] for key in SCORE}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="float model of an earlier run (default: train one)")
    parser.add_argument("--recipe", default="int8_full")
    parser.add_argument("--epochs", type=int, default=200)
    parser.add_argument("--steps", type=int, default=700, help="of QAT, batch 128: two epochs")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--workers", type=int, default=4, help="processes that decode images for QAT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    made = train_float(arguments)
    print(made, flush=True)
    for name in ("float", "PTQ", "QAT"):
        log = arguments.work / f"{name}.log"
        row = {
            "variant": name,
            "recipe": arguments.recipe,
            "onnxruntime": score(arguments, quantize(arguments, name, log), log),
        }
        row |= {"qat_steps": arguments.steps if name == "QAT" else None, "float_model": made}
        append_row(arguments.out, "cifar10", **row)
        print(name, row["onnxruntime"], flush=True)


if __name__ == "__main__":
    main()
