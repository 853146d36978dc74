"""What check_with_torch.sh asks of PyTorch and of TensorBoard's reader, one question a command.

    python torch_interop.py step RUN        load RUN/last.pt as a user would and take an optimizer step from it
    python torch_interop.py events RUN      compare the TensorBoard scalars of a run with its metrics.jsonl
    python torch_interop.py write RUN OUT   save checkpoints as a PyTorch script would, from RUN's architecture
    python torch_interop.py same A B        check that two checkpoints hold the same weights, bit for bit
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import torch

from torch_peer import Backbone, Classifier, Model, optimizer


def read_config(run: Path) -> dict:
    return json.loads((run / "config.json").read_text())


def network(run: Path) -> Classifier:
    c = read_config(run)["model"]
    fields = {key: value for key, value in c.items() if key in Model.__dataclass_fields__ and key != "backbone"}
    backbone = {key: value for key, value in c["backbone"].items() if key in Backbone.__dataclass_fields__}
    return Classifier(Model(Backbone(**backbone, image_size=c["image_size"]), **fields))


def load(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def step(run: Path) -> None:
    c, state, net = read_config(run), load(run / "last.pt"), network(run)
    net.load_state_dict(state["model_state"], strict=True)
    o = c["optimization"]
    opt = optimizer(o["optimizer"], net.parameters(), 1.0, 0.5)
    opt.load_state_dict(state["optimizer_state"])
    group = opt.param_groups[0]
    # The rates of the file must win over those of the constructor.
    assert group["weight_decay"] == o["weight_decay"] and group["lr"] <= o["lr"], group
    t, size = c["model"]["sequence_length"], c["model"]["image_size"]
    torch.manual_seed(0)
    images = [torch.randn(2, t, 3, size, size) for _ in range(3)]
    pose = torch.randn(2, t, 3 * c["model"]["pose_landmarks"])
    logits = net(*images, pose, torch.ones(2, t, dtype=torch.bool))
    before = [p.detach().clone() for p in net.parameters()]
    torch.nn.functional.cross_entropy(logits, torch.tensor([1, 2])).backward()
    group["lr"] = 1e-3
    opt.step()
    still = [name for (name, p), old in zip(net.named_parameters(), before) if torch.equal(p, old)]
    assert not still, f"did not move: {still}"
    print("one step on from it: ok")


def events(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    folder = Path(read_config(run)["data"]["tensorboard"])
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    tags = {"loss/train": "train_loss", "loss/val": "val_loss", "accuracy/val": "val_accuracy", "lr": "lr",
            "grad_norm": "grad_norm"}
    found = set(accumulator.Tags()["scalars"])
    assert found == {*tags, "loss/step", "grad_norm/step"}, found
    for tag, key in tags.items():
        scalars = accumulator.Scalars(tag)
        assert [s.step for s in scalars] == [row["epoch"] for row in rows], tag
        for scalar, row in zip(scalars, rows):
            assert math.isclose(scalar.value, row[key], rel_tol=1e-6, abs_tol=1e-12), (tag, scalar, row)
    steps = [s.step for s in accumulator.Scalars("loss/step")]
    total = load(run / "last.pt")["step"]
    assert steps == list(range(1, total + 1)), (steps, total)
    print(f"TensorBoard: {len(rows)} epochs and {total} steps, each scalar at its step: ok")


def write(run: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(7)
    net = network(run)
    opt = optimizer("adamw", net.parameters(), 1e-3, 0.0)
    plain = {"epoch": 3, "model_state": net.state_dict(), "optimizer_state": opt.state_dict(), "val_loss": 0.5}
    torch.save(plain, out / "plain.pt")
    extra = {
        "val_loss": np.float64(0.5),
        "best": np.float32(0.25),
        "history": np.arange(6.0).reshape(2, 3),
        "args": {"out": Path("runs"), "betas": (0.9, 0.999), "names": ["a", None, True]},
        "rng": torch.get_rng_state(),
        "half": torch.ones(3, dtype=torch.bfloat16),
    }
    torch.save(plain | extra, out / "extra.pt")
    weights = dict(net.state_dict())
    weights["decoder.extra"] = torch.zeros(3)
    weights["encoder.fusion.norm.weight"] = torch.zeros(5)
    del weights["encoder.fusion.norm.bias"]
    torch.save(plain | {"model_state": weights}, out / "misfit.pt")
    print("wrote", *sorted(path.name for path in out.iterdir()))


def same(a: Path, b: Path) -> None:
    first = torch.load(a, map_location="cpu", weights_only=False)["model_state"]
    second = load(b)["model_state"]
    assert list(first) == list(second), "the keys or their order differ"
    differ = [name for name in first if not torch.equal(first[name], second[name])]
    assert not differ, differ
    print(f"{len(first)} parameters, the same to the bit: ok")


if __name__ == "__main__":
    commands = {"step": step, "events": events, "write": write, "same": same}
    if len(sys.argv) < 3 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    commands[sys.argv[1]](*map(Path, sys.argv[2:]))
