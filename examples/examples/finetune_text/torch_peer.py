#!/usr/bin/env python3
"""The same training loop in PyTorch, to compare the time of a step.

    python3 -m venv venv && venv/bin/pip install torch transformers
    venv/bin/python torch_peer.py --model DIR --train train.csv --threads 2

Vanilla fine-tuning with fused AdamW; batches, dropout, head and learning rates as in the example.
"""

import argparse
import csv
import random
import time

import torch
from transformers import AutoModel, AutoTokenizer


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--train", required=True)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--head-lr", type=float, default=5e-3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    random.seed(0)

    with open(options.train, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    classes = sorted({row["label"] for row in rows})
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    encoder = AutoModel.from_pretrained(options.model, add_pooling_layer=False).train()
    head = torch.nn.Linear(encoder.config.hidden_size, len(classes))
    dropout = torch.nn.Dropout(encoder.config.hidden_dropout_prob)
    groups = [
        {"params": encoder.parameters(), "lr": options.rate},
        {"params": head.parameters(), "lr": options.head_lr},
    ]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-2, fused=True)

    seconds = dict.fromkeys(["data", "forward", "backward", "step"], 0.0)
    steps = 0
    for _ in range(options.epochs):
        random.shuffle(rows)
        for start in range(0, len(rows), options.batch):
            moments = [time.perf_counter()]
            batch = rows[start : start + options.batch]
            texts = tokenizer(
                [row["text"] for row in batch],
                padding=True,
                truncation=True,
                max_length=options.max_length,
                return_tensors="pt",
            )
            labels = torch.tensor([classes.index(row["label"]) for row in batch])
            moments.append(time.perf_counter())
            tokens = encoder(**texts).last_hidden_state
            mask = texts["attention_mask"].unsqueeze(-1).float()
            pooled = (tokens * mask).sum(1) / mask.sum(1)
            loss = torch.nn.functional.cross_entropy(head(dropout(pooled)), labels)
            value = loss.item()
            moments.append(time.perf_counter())
            optimizer.zero_grad()
            loss.backward()
            moments.append(time.perf_counter())
            optimizer.step()
            moments.append(time.perf_counter())
            for part, begun, ended in zip(seconds, moments, moments[1:]):
                seconds[part] += ended - begun
            steps += 1
    total = sum(seconds.values())
    parts = ", ".join(f"{part} {1e3 * s / steps:.1f} ({100 * s / total:.1f} %)" for part, s in seconds.items())
    print(f"torch {torch.__version__}, {options.threads} threads, last loss {value:.3f}")
    print(f"{1e3 * total / steps:.1f} ms per step: {parts}")


if __name__ == "__main__":
    main()
