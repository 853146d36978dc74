"""What check_with_torch.sh asks of PyTorch and of TensorBoard's reader, one question a command.

    python torch_interop.py step RUN        load RUN/last.pt as a user would and take an optimizer step from it
    python torch_interop.py events RUN      compare the TensorBoard scalars of a run with its metrics.jsonl
    python torch_interop.py write RUN OUT   save checkpoints as a PyTorch script would, from RUN's architecture
    python torch_interop.py same A B        check that two checkpoints hold the same weights, bit for bit
    python torch_interop.py figures EVALUATION   measure predictions.csv anew and compare with metrics.json
    python torch_interop.py tokens FOLDER   read each NAME.json there with Python's tokenizers and compare the tokens of texts
    python torch_interop.py blocks DATA     write a drawn dataset's images anew in blocks of one colour, which every JPEG
                                            decoder reads alike
    python torch_interop.py readme RUN PROGRAM          follow the README's Python from the files of a run's validation
                                            clips to logits, and compare with what PROGRAM, slt-run, has for its best.pt
    python torch_interop.py readme-on-blocks RUN PROGRAM    the same within much less, for images of `blocks`
"""

import argparse
import collections
import csv
import datetime
import json
import math
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from torch_peer import network, optimizer


def read_config(run: Path) -> dict:
    return json.loads((run / "config.json").read_text())


def load(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True)


def step(run: Path) -> None:
    c, state, net = read_config(run), load(run / "last.pt"), network(read_config(run))
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
    net = network(read_config(run))
    opt = optimizer("adamw", net.parameters(), 1e-3, 0.0)
    plain = {"epoch": 3, "model_state": net.state_dict(), "optimizer_state": opt.state_dict(), "val_loss": 0.5}
    torch.save(plain, out / "plain.pt")
    # What training scripts put beside the weights: all that configs/FROM_PYTHON.md says is read over.
    extra = {
        "val_loss": np.float64(0.5),
        "best": np.float32(0.25),
        "history": np.arange(6.0).reshape(2, 3),
        "args": {"out": Path("runs"), "betas": (0.9, 0.999), "names": ["a", None, True]},
        "rng": torch.get_rng_state(),
        "half": torch.ones(3, dtype=torch.bfloat16),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "torch": [torch.Size([2, 3]), torch.float16, torch.device("cpu")],
        "python": [collections.OrderedDict(a=1), collections.Counter("aab"), {1, 2}, frozenset("a"), 1j, b"x", bytearray(b"y"),
                   10**30, random.getstate(), argparse.Namespace(lr=0.1)],
        "numpy": [np.bool_(True), np.int8(1), np.zeros(2, complex), np.random.get_state()],
        "when": [datetime.datetime(2026, 1, 2, 3), datetime.date(2026, 1, 2), datetime.timedelta(1)],
    }
    torch.save(plain | extra, out / "extra.pt")
    torch.save(plain | {"history": collections.defaultdict(list)}, out / "class.pt")
    torch.save(plain | {"mask": torch.eye(2).to_sparse()}, out / "sparse.pt")
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


# How far a log-probability may be from slt-run's: its JPEG decoder is within 5 of 255 levels of Pillow's, and rounding.
PIXELS, ROUNDING = 0.05, 5e-4


def blocks(data: Path) -> None:
    from PIL import Image

    for path in data.rglob("*.jpg"):
        image = Image.open(path)
        small = image.resize((image.width // 8, image.height // 8), Image.Resampling.BOX)
        small.resize(image.size, Image.Resampling.NEAREST).save(path, quality=100, subsampling=0)


def readme_snippet() -> dict:
    """What the README's Python defines, as a user who copies it has it."""
    text = (Path(__file__).parent.parent / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)
    assert len(blocks) == 1, f"the README has {len(blocks)} blocks of Python"
    names: dict = {}
    exec(compile(blocks[0], "README.md", "exec"), names)
    return names


def table(path: Path) -> list[list[str]]:
    with path.open(newline="") as file:
        return list(csv.reader(file))[1:]


def text_of_class(target, k: int, classes: int) -> str:
    return next(text for text in map(str, range(10**6)) if target(text, classes) == k)


def log_probability(program: Path, run: Path, work: Path, video_id: str, text: str) -> float:
    """What slt-run with the weights of best.pt says of one clip, if `text` were its text: without label smoothing, a
    validation loss over one clip is its class's negative log-probability. A rate of 0 leaves the weights as they are."""
    (work / "one.csv").write_text(f"{video_id}\n")
    (work / "texts.csv").write_text(f"video_id,texto\n{video_id},{text}\n")
    change = ["--init-from", run / "best.pt", "--lr", "0", "--weight-decay", "0", "--epochs", "1", "--label-smoothing", "0",
              "--metadata-csv", work / "texts.csv", "--train-index", work / "one.csv", "--val-index", work / "one.csv",
              "--work-dir", work / "run", "--tensorboard", "", "--quiet", "--overwrite"]
    done = subprocess.run([program, run / "config.toml", *change], stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    return -json.loads((work / "run/metrics.jsonl").read_text())["val_loss"]


def readme(run: Path, program: Path, tolerance: float = PIXELS) -> None:
    names, c = readme_snippet(), read_config(run)
    logits, target = names["logits"], names["target"]
    classes, smoothing = c["model"]["vocab_size"], c["optimization"]["label_smoothing"]
    texts = dict(table(Path(c["data"]["metadata_csv"])))
    ids = [row[0] for row in table(Path(c["data"]["val_index"]))]
    found = torch.stack([logits(run, video_id) for video_id in ids])

    # What best.pt was chosen for.
    targets = torch.tensor([target(texts[video_id], classes) for video_id in ids])
    loss = torch.nn.functional.cross_entropy(found, targets, label_smoothing=smoothing).item()
    right = (found.argmax(1) == targets).double().mean().item()
    state = load(run / "best.pt")
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[state["best_epoch"] - 1])
    print(f"best.pt: loss {loss:.5f}, slt-run's {state['val_loss']:.5f}; accuracy {right:.4f}, {row['val_accuracy']:.4f}")
    assert abs(loss - state["val_loss"]) < tolerance and math.isclose(right, row["val_accuracy"]), "another loss"

    # Each logit, up to a number that a clip's logits have in common and that no loss can tell.
    with tempfile.TemporaryDirectory() as folder:
        theirs = [[log_probability(program, run, Path(folder), video_id, text_of_class(target, k, classes))
                   for k in range(classes)] for video_id in ids]
    worst = (torch.tensor(theirs) - found.log_softmax(1)).abs().max().item()
    clips_differ = found.log_softmax(1).std(0).max().item()
    print(f"log-probabilities of {classes} classes for {len(ids)} clips: within {worst:.5f}; from clip to clip {clips_differ:.2f}")
    assert worst < tolerance < clips_differ / 10, "other logits"


def figures(evaluation: Path) -> None:
    peer = subprocess.run([sys.executable, Path(__file__).parent / "metrics_peer.py", "check", evaluation / "predictions.csv"],
                          check=True, capture_output=True, text=True)
    expected, found = json.loads(peer.stdout), json.loads((evaluation / "metrics.json").read_text())
    all_found = found["figures"] | found["signatures"]
    shared = [name for name in expected if name in all_found]
    assert len(shared) >= 26, "figures are missing"
    for name in shared:
        a, b = all_found[name], expected[name]
        assert a == b or math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-12), f"{name} is {a}, not {b}"
    print(f"{len(shared)} figures and signatures of {evaluation}: the same; BLEU-4 {expected['bleu_4_13a']:.2f}")


def tokens(folder: Path) -> None:
    from tokenizers import Tokenizer

    for path in sorted(folder.glob("*.json")):
        if path.name == "texts.json":
            continue
        tokenizer, found = Tokenizer.from_file(str(path)), json.loads(path.with_suffix(".ids").read_text())
        texts = json.loads((folder / "texts.json").read_text())
        assert len(texts) == len(found)
        for text, ids in zip(texts, found):
            theirs = tokenizer.encode(text, add_special_tokens=False).ids
            assert theirs == ids, f"{path.stem}: {text!r} is {ids}, not {theirs}"
        print(f"{path.stem}: the tokens of {len(texts)} texts are the same; {tokenizer.get_vocab_size()} tokens")


def readme_on_blocks(run: Path, program: Path) -> None:
    readme(run, program, ROUNDING)


if __name__ == "__main__":
    commands = {"step": step, "events": events, "write": write, "same": same, "blocks": blocks, "readme": readme,
                "readme-on-blocks": readme_on_blocks, "figures": figures, "tokens": tokens}
    if len(sys.argv) < 3 or sys.argv[1] not in commands:
        sys.exit(__doc__)
    commands[sys.argv[1]](*map(Path, sys.argv[2:]))
