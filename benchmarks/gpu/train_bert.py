"""A trained model in BERT-base's shape where no pretrained one can be had: SST-2's train split, from random weights.

    python -m benchmarks.gpu.train_bert --data DATA/sst2 --tokenizer DATA/tokenizers/bert-base-uncased --out MODEL

Two minutes on one H200, 80 % of the validation sentences: far from a pretrained model's 93, but its weights and
activations are those of a model that answers, which a search needs and random weights do not give.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

MAX_LENGTH, BATCH, EPOCHS, RATE, WARMUP = 64, 128, 4, 1e-4, 200


def read(folder: Path, split: str, tokenizer: object) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return a split's ids, mask (rows, MAX_LENGTH) and labels (rows,) on the GPU."""
    table = pd.read_parquet(folder / f"{split}.parquet")
    found = tokenizer(list(table["sentence"]), padding="max_length", truncation=True, max_length=MAX_LENGTH,  # type: ignore[operator]
                      return_tensors="pt")  # fmt: skip
    return found["input_ids"].cuda(), found["attention_mask"].cuda(), torch.tensor(table["label"].values).cuda()


def accuracy(model: torch.nn.Module, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> float:
    model.eval()
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        batches = zip(ids.split(256), mask.split(256), strict=True)
        found = [model(input_ids=i, attention_mask=m).logits for i, m in batches]
    model.train()
    return float((torch.cat(found).argmax(1) == labels).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--out", required=True)
    args = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    ids, mask, labels = read(args.data, "train", tokenizer)
    scored = read(args.data, "validation", tokenizer)
    names = {0: "negative", 1: "positive"}
    config = BertConfig(num_labels=2, vocab_size=len(tokenizer), id2label=names,
                        label2id={name: index for index, name in names.items()})  # fmt: skip
    model = BertForSequenceClassification(config).cuda().train()
    steps = EPOCHS * (len(ids) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, max(0.0, (steps - step) / (steps - WARMUP)))
    )
    for epoch in range(EPOCHS):
        for rows in tqdm(torch.randperm(len(ids), device="cuda").split(BATCH)[: len(ids) // BATCH], unit="step"):
            longest = int(mask[rows].sum(1).max())
            with torch.autocast("cuda", torch.bfloat16):
                answers = model(input_ids=ids[rows, :longest], attention_mask=mask[rows, :longest], labels=labels[rows])
            optimizer.zero_grad(set_to_none=True)
            answers.loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1}: loss {answers.loss.item():.3f}, accuracy {accuracy(model, *scored):.4f}", flush=True)
    model.eval().cpu().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)


if __name__ == "__main__":
    main()
