"""Checks a run's metrics.jsonl: every epoch is there, and the last one is good enough. Needs only Python 3.

    python3 check_metrics.py METRICS.jsonl --epochs 20 --val-loss 0.08 --accuracy 1.0
    python3 check_metrics.py METRICS.jsonl … --like OTHER.jsonl      the same run on another engine: its first epoch's
                                                                     losses within 1e-5, its last one's within 0.01
    python3 check_metrics.py METRICS.jsonl … --near OTHER.jsonl      the same run in another precision: its last epoch's
                                                                     losses within 0.02
    python3 check_metrics.py METRICS.jsonl … --bleu 80               its last translations' BLEU, at least
    python3 check_metrics.py METRICS.jsonl … --predictions FILE.csv  each hypothesis there is its reference to the letter
"""

import argparse
import csv
import json
import sys
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("metrics", type=Path)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--val-loss", type=float, required=True, help="the most that the last val_loss may be")
    parser.add_argument("--accuracy", type=float, required=True, help="the least that the last val_accuracy may be")
    parser.add_argument("--like", type=Path, help="the metrics of the same run on another engine")
    parser.add_argument("--near", type=Path, help="the metrics of the same run in another precision")
    parser.add_argument("--bleu", type=float, help="the least that the last val_bleu may be")
    parser.add_argument("--predictions", type=Path, help="translations that have to be their references")
    a = parser.parse_args()

    rows = [json.loads(line) for line in a.metrics.read_text().splitlines()]
    if [row["epoch"] for row in rows] != list(range(1, a.epochs + 1)):
        sys.exit(f"{a.metrics}: expected epochs 1 to {a.epochs}, found {[row['epoch'] for row in rows]}")
    last = rows[-1]
    loss, accuracy = last["val_loss"], last["val_accuracy"]
    found = f"epoch {a.epochs}: val_loss {loss}, val_accuracy {accuracy}"
    # A loss that is not a number is null in the file.
    if loss is None or not loss <= a.val_loss or not accuracy >= a.accuracy:
        sys.exit(f"{a.metrics}: {found}; needed at most {a.val_loss} and at least {a.accuracy}")
    for other, bounds in ((a.like, ((0, 1e-5), (-1, 0.01))), (a.near, ((-1, 0.02),))):
        if not other:
            continue
        others = [json.loads(line) for line in other.read_text().splitlines()]
        for epoch, tolerance in bounds:
            for key in ("train_loss", "val_loss"):
                here, there = rows[epoch][key], others[epoch][key]
                if not abs(here - there) <= tolerance * (abs(there) if epoch == 0 else 1):
                    sys.exit(f"{a.metrics}: {key} of epoch {rows[epoch]['epoch']} is {here}, and {there} in {other}")
        found += f"; as {other}"
    if a.bleu is not None:
        if not last["val_bleu"] >= a.bleu:
            sys.exit(f"{a.metrics}: val_bleu is {last['val_bleu']}; needed at least {a.bleu}")
        found += f"; val_bleu {last['val_bleu']:.1f}"
    if a.predictions:
        with a.predictions.open(newline="", encoding="utf-8") as file:
            pairs = [(row["reference"], row["hypothesis"]) for row in csv.DictReader(file)]
        wrong = [pair for pair in pairs if pair[0] != pair[1]]
        if wrong or not pairs:
            sys.exit(f"{a.predictions}: {len(wrong)} of {len(pairs)} translations are wrong, such as {wrong[:1]}")
        found += f"; {len(pairs)} of {len(pairs)} translations right"
    print(f"{found}: good")


if __name__ == "__main__":
    main()
