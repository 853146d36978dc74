#!/usr/bin/env python3
"""Learning rates of PyTorch's schedulers over random figures, as cases for slt-run's.

    scripts/torch_schedules.py [--seed N] [--epochs 200] > tests/data/schedules.json

Needs torch. A case has the experiment's fields, the factors of its groups' learning rates, the figure at the end of each
epoch (null: not a number), and each group's rate at each step of each epoch. The rest of the parameters is the first
group. Warm-up is LambdaLR, stepped after each training step; the scheduler is stepped at the end of an epoch, once the
warm-up is over. `SCHEDULE_CASES=FILE cargo test --release --lib rates_of` takes other cases.
"""

import argparse
import json
import math
import random

import torch
from torch.optim import lr_scheduler


def cases():
    plateau = {"scheduler": "plateau", "mode": "min"}
    yield {"name": "plateau", **plateau}
    yield {"name": "plateau, impatient", **plateau, "scheduler_patience": 0, "scheduler_gamma": 0.9}
    yield {"name": "plateau, lowest rate", **plateau, "scheduler_patience": 3, "min_lr": 1e-4, "lr_factors": [0.1, 3.0]}
    yield {"name": "plateau, higher is better", **plateau, "mode": "max", "scheduler_patience": 4, "scheduler_threshold": 0.02}
    yield {"name": "plateau, warm-up", **plateau, "scheduler_patience": 2, "warmup_steps": 7, "lr_factors": [0.5]}
    yield {"name": "plateau, not a number", **plateau, "scheduler_patience": 1, "broken": 0.3}
    yield {"name": "steplr, groups", "scheduler": "steplr", "scheduler_step_size": 7, "scheduler_gamma": 0.8, "lr_factors": [0.1, 2.0]}
    yield {"name": "steplr, warm-up", "scheduler": "steplr", "scheduler_step_size": 5, "warmup_steps": 10}
    yield {"name": "cosine, groups", "scheduler": "cosine", "scheduler_tmax": 9, "lr_factors": [0.01]}
    yield {"name": "cosine, warm-up", "scheduler": "cosine", "scheduler_tmax": 30, "warmup_steps": 2, "lr_factors": [0.3]}
    yield {"name": "warm-up alone", "scheduler": "none", "warmup_steps": 100, "lr_factors": [7.0]}


def scheduler_of(case, optimizer):
    if case["scheduler"] == "plateau":
        return lr_scheduler.ReduceLROnPlateau(
            optimizer, mode=case["mode"], factor=case.get("scheduler_gamma", 0.5), patience=case.get("scheduler_patience", 10),
            threshold=case.get("scheduler_threshold", 1e-4), min_lr=case.get("min_lr", 0.0))
    if case["scheduler"] == "steplr":
        return lr_scheduler.StepLR(optimizer, case["scheduler_step_size"], case.get("scheduler_gamma", 0.5))
    if case["scheduler"] == "cosine":
        return lr_scheduler.CosineAnnealingLR(optimizer, case["scheduler_tmax"])
    return None


def figures(case, epochs, draw):
    """A curve that falls (or rises) with noise, with stretches on which nothing improves."""
    level, curve = 5.0, []
    for epoch in range(epochs):
        if draw.random() < 0.4:
            level *= draw.uniform(0.9, 1.0)
        figure = level + draw.uniform(0.0, 0.3)
        if case.get("mode") == "max":
            figure = 100.0 / figure
        curve.append(math.nan if draw.random() < case.get("broken", 0.0) else figure)
    return curve


def run(case, epochs, draw):
    case["base_lr"] = draw.choice([1e-3, 3e-4, 0.1])
    case["steps_per_epoch"] = steps = draw.randint(2, 4)
    factors = [1.0, *case.get("lr_factors", [])]
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": case["base_lr"] * factor} for factor in factors]
    optimizer = torch.optim.SGD(groups, lr=case["base_lr"])
    scheduler = scheduler_of(case, optimizer)
    warmup_steps = case.get("warmup_steps", 0)
    warmup = lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / warmup_steps)) if warmup_steps else None
    case["figures"], case["rates"], done = figures(case, epochs, draw), [], 0
    for figure in case["figures"]:
        of_epoch = []
        for _ in range(steps):
            of_epoch.append([group["lr"] for group in optimizer.param_groups])
            optimizer.step()
            done += 1
            if done <= warmup_steps:
                warmup.step()
        case["rates"].append(of_epoch)
        if scheduler is not None and done >= warmup_steps:
            scheduler.step(*([figure] if case["scheduler"] == "plateau" else []))
    case["figures"] = [None if math.isnan(figure) else figure for figure in case["figures"]]
    return case


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=13)
    parser.add_argument("--epochs", type=int, default=200)
    args = parser.parse_args()
    draw = random.Random(args.seed)
    made = [json.dumps(run(case, args.epochs, draw)) for case in cases()]
    print("[\n" + ",\n".join(made) + "\n]")


if __name__ == "__main__":
    main()
