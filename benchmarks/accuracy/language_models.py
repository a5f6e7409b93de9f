"""Language models: perplexity float against INT8 in ONNX Runtime, and whether greedy text stays the same.

    python -m benchmarks.accuracy.language_models --stories DIR --text DIR --work FOLDER --out FILE

--stories: a causal language model of short English stories with its tokenizer. Its calibration stories and its fixed
text are sampled from the float model itself (two seeds), its prompts are the twenty below. --text: a folder with
train.parquet and test.parquet, column `text`, on which a GPT-2- and a Llama-shaped model are trained for a short time;
what is left out of training calibrates nothing. Everything after the float model is the product's own commands.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from benchmarks.commands import run, score_checkpoint
from benchmarks.rows import append_row
from engine.backend import get_backend

VARIANTS = {
    "float": None,
    "int8_linear": "--recipe int8_linear",
    "int8_linear, mse": "--recipe int8_linear --method mse",
    "int8_smoothquant": "--recipe int8_smoothquant",
    "int8_smoothquant, mse": "--recipe int8_smoothquant --method mse",
}
BLOCK = 128  # tokens of one sample, and of one scored block
STORY_TOKENS, NUM_STORIES, NUM_NEW_TOKENS = 256, 128, 64
VOCABULARY, WIDTH, LAYERS, HEADS = 512, 128, 4, 4
PROMPTS = (
    "Once upon a time", "One day, a little girl named Lily", "Tom and his dog", "The sun was", "There was a big",
    "A boy named Tim", "Lily and Ben were", "In the park,", "Mom said,", "The cat wanted", "Sam had a red ball",
    "It was a cold day", "The bird was sad because", "Anna went to the", "The old man had", "A small fish",
    "They were playing with", "Max liked to", "The little bear", "Her mom gave her",
)  # fmt: skip


def sample_stories(model: PreTrainedModel, tokenizer: Any, seed: int) -> list[str]:
    """Return stories that the float model tells itself (temperature 1)."""
    torch.manual_seed(seed)
    start = torch.full((NUM_STORIES, 1), tokenizer.bos_token_id)
    ids = model.generate(
        start, attention_mask=torch.ones_like(start), do_sample=True, top_k=0, max_new_tokens=STORY_TOKENS - 1,
        pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    return tokenizer.batch_decode(ids, skip_special_tokens=True)


def make_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE of 512 tokens trained on the text."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([text[i : i + 10000] for i in range(0, len(text), 10000)], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<end>", pad_token="<end>", model_max_length=2 * BLOCK
    )


def shaped_model(shape: str) -> PreTrainedModel:
    """Return an untrained model of 4 layers, width 128: "gpt2", or "llama" with grouped heads."""
    torch.manual_seed(0)
    if shape == "gpt2":
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=VOCABULARY, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_positions=2 * BLOCK,
                       resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0)
        )  # fmt: skip
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCABULARY, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
                    num_key_value_heads=HEADS // 2, intermediate_size=3 * WIDTH, max_position_embeddings=2 * BLOCK,
                    bos_token_id=0, eos_token_id=0)
    )  # fmt: skip


def train(model: PreTrainedModel, ids: Tensor, steps: int) -> float:
    """Train on random blocks of the ids; return the mean loss of the last 50 steps in nats a token."""
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    losses: list[float] = []
    model.train()
    for _ in tqdm(range(steps), desc="train", unit="step", mininterval=20):
        starts = torch.randint(0, len(ids) - BLOCK, (16,), generator=generator)
        batch = torch.stack([ids[start : start + BLOCK] for start in starts.tolist()])
        loss = model(input_ids=batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        schedule.step()
        losses.append(float(loss))
    model.eval()
    return float(np.mean(losses[-50:]))


def write_data(folder: Path, splits: dict[str, list[str]]) -> None:
    """Write one parquet file with the column `text` for each split."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, texts in splits.items():
        pd.DataFrame({"text": texts}).to_parquet(folder / f"{name}.parquet", index=False)


def prepare_shape(shape: str, arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Write FOLDER/model, trained, and FOLDER/data; return how it was made."""
    text = {split: "".join(pd.read_parquet(arguments.text / f"{split}.parquet")["text"]) for split in ("train", "test")}
    tokenizer, model, start = make_tokenizer(text["train"]), shaped_model(shape), time.time()
    ids = tokenizer(text["train"], add_special_tokens=False, verbose=False)["input_ids"]
    loss = train(model, torch.tensor(ids), arguments.steps)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    # The whole text is one row in the source: calibration draws rows, so it gets pieces of a block's length.
    pieces = [tokenizer.decode(ids[i : i + BLOCK]) for i in range(0, len(ids), BLOCK)]
    write_data(folder / "data", {"train": pieces, "test": [text["test"]]})
    return {"steps": arguments.steps, "train_loss": round(loss, 4), "train_seconds": round(time.time() - start)}


def prepare_stories(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Write FOLDER/model, as it is, and FOLDER/data; return how it was made."""
    model = AutoModelForCausalLM.from_pretrained(arguments.stories, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(arguments.stories)
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    write_data(
        folder / "data", {split: sample_stories(model, tokenizer, seed) for seed, split in enumerate(("train", "test"))}
    )
    return {"parameters": model.num_parameters()}


def make_engine(folder: Path, name: str, log: Path) -> tuple[Path, dict[str, Any]]:
    """Return the engine of one variant and the row of `python -m eval` for it."""
    stem = name.replace(",", "").replace(" ", "-")
    checkpoint, engine = folder / ("model" if VARIANTS[name] is None else stem), folder / f"{stem}.engine"
    if VARIANTS[name] is not None:
        flags = f"--samples {folder}/data/train.parquet --column text --max-length {BLOCK} --json {VARIANTS[name]}"
        run(
            [sys.executable, "-m", "calib", "--model", f"{folder}/model", "--out", str(checkpoint), *flags.split()], log
        )
    evaluation = f"""--task perplexity --data {folder}/data --split test --seq-length {BLOCK}
        --reference {folder}/model --batch-size 8""".split()
    return engine, score_checkpoint(checkpoint, engine, evaluation, log)


def greedy(engine: Path, prompts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the most probable continuations, (prompts, 64), each token by a forward over all before it, and by how
    much the chosen logits lead, same shape.
    """
    texts, leads = [], []
    with get_backend("onnxruntime").load(engine) as runner:
        for prompt in prompts:
            ids = list(prompt)
            for _ in range(NUM_NEW_TOKENS):
                feed = np.array([ids], dtype=np.int64)
                logits = runner({"input_ids": feed, "attention_mask": np.ones_like(feed)})["logits"][0, -1]
                second, first = np.sort(logits)[-2:]
                ids.append(int(logits.argmax()))
                leads.append(first - second)
            texts.append(ids[len(prompt) :])
    return np.array(texts), np.array(leads).reshape(len(prompts), NUM_NEW_TOKENS)


def compare(subject: str, made: dict[str, Any], folder: Path, arguments: argparse.Namespace) -> None:
    """Append one row for each variant of one model."""
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    prompts = [start + tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in PROMPTS]
    expected, reference = np.empty(0), 0.0
    for name in VARIANTS:
        engine, result = make_engine(folder, name, folder / "log")
        (texts, leads), perplexity = greedy(engine, prompts), result["metric"]
        if VARIANTS[name] is None:
            expected, reference = texts, perplexity
        same = texts == expected
        row = {
            "model": subject, "made": made, "variant": name, "backend": "onnxruntime", "perplexity": perplexity,
            "perplexity_low": result["metric_low"], "perplexity_high": result["metric_high"],
            "perplexity_change": perplexity / reference - 1, "error_abs_mean": result["error_abs_mean"],
            "num_blocks": result["num_samples"], "block_tokens": BLOCK, "num_prompts": len(prompts),
            "equal_texts": int(same.all(1).sum()), "equal_tokens": float(np.cumprod(same, axis=1).mean()),
            # Where two tokens are nearly as probable, any change of the logits chooses the other one.
            "median_smallest_lead": float(np.median(leads.min(1))),
        }  # fmt: skip
        append_row(arguments.out, "language_models", **row)
        print(
            f"{subject:10s} {name:18s} perplexity {perplexity:.4f} ({row['perplexity_change']:+.2%}), "
            f"{row['equal_texts']} of {len(prompts)} texts equal, {row['equal_tokens']:.0%} of tokens before the first "
            "difference",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stories", type=Path, help="folder of a causal language model with its tokenizer")
    parser.add_argument("--text", type=Path, help="folder with train.parquet and test.parquet, column text")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    if arguments.stories is not None:
        folder = arguments.work / "stories"
        compare("stories260K", prepare_stories(arguments, folder), folder, arguments)
    for shape in ("gpt2", "llama") if arguments.text is not None else ():
        folder = arguments.work / shape
        compare(f"{shape}, 4 x 128", prepare_shape(shape, arguments, folder), folder, arguments)


if __name__ == "__main__":
    main()
