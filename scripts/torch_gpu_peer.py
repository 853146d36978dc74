#!/usr/bin/env python3
"""torch_peer.py's network on a GPU, for gpu_check.py: as the Python script used it, and at its best. Prints JSON.

    python torch_gpu_peer.py step B T IMG --mode MODE [--steps 20] [--warmup 5] [--device cuda]
    python torch_gpu_peer.py rates [--device cuda]       the card's matrix rates and its copy bandwidth
    python torch_gpu_peer.py same A.pt B.pt              are the tensors of two checkpoints the same, to the bit?
    python torch_gpu_peer.py about                       versions, the card, where CUDA's libraries lie

Modes: eager-f16 (autocast and a GradScaler, as in the script), eager-bf16, compile-f16, compile-bf16 (torch.compile and
the fused AdamW), eager-f32. A step is zero_grad, forward, backward and AdamW, with torch.cuda.synchronize before and
after. PyTorch is given an advantage: its inputs lie on the GPU as f32 before the clock starts, so that normalising them is
no part of its step; slt-run's are bytes.

Out of memory is a result, {"oom": true}, and so is a torch.compile that cannot, {"failed": "…"}: the exit code is 0.
`--device cpu` is for trying the script out; --depth and --size make it small.
"""
from __future__ import annotations

import argparse
import contextlib
import json
import resource
import sys
import time
from pathlib import Path

import torch
from torch import nn

import torch_peer

MODES = ["eager-f16", "eager-bf16", "compile-f16", "compile-bf16", "eager-f32"]
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
GIB = 2**30


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def is_out_of_memory(error: BaseException) -> bool:
    """torch.compile wraps what its own code meets, so the text counts too."""
    return isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error).lower()


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]


class Training:
    """The network, its optimizer and one batch on the device."""

    def __init__(self, a):
        kind, _, name = a.mode.partition("-")
        self.device, self.dtype = torch.device(a.device), DTYPES[name]
        torch.manual_seed(0)
        c = torch_peer.Model(torch_peer.Backbone(image_size=a.img, depth=a.depth), sequence_length=a.frames)
        plain = torch_peer.Classifier(c).to(self.device).train()
        self.net = torch.compile(plain) if kind == "compile" else plain
        self.fused = kind == "compile"
        self.optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-4, weight_decay=0.0, fused=self.fused or None)
        self.loss_fn = nn.CrossEntropyLoss(label_smoothing=0.1)
        # Off, it passes everything through.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=name == "f16")
        on = {"device": self.device}
        self.x = [torch.randn(a.batch, a.frames, 3, a.img, a.img, **on) for _ in range(3)]
        self.pose = torch.randn(a.batch, a.frames, 3 * c.pose_landmarks, **on)
        self.mask = torch.ones(a.batch, a.frames, dtype=torch.bool, **on)
        self.y = torch.randint(0, c.vocab_size, (a.batch,), **on)

    def autocast(self):
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def step(self) -> tuple[float, torch.Tensor]:
        """The seconds of a step, and its loss."""
        synchronize(self.device)
        begun = time.perf_counter()
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            loss = self.loss_fn(self.net(*self.x, self.pose, self.mask), self.y)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        synchronize(self.device)
        return time.perf_counter() - begun, loss


def peaks(device: torch.device) -> dict:
    """What PyTorch's tensors took at most, and what it had taken from the card for them; the context is in neither."""
    if device.type != "cuda":
        return {"peak_gpu_gib": None, "peak_gpu_reserved_gib": None}
    return {"peak_gpu_gib": torch.cuda.max_memory_allocated(device) / GIB,
            "peak_gpu_reserved_gib": torch.cuda.max_memory_reserved(device) / GIB}


def timed(a) -> dict:
    training = Training(a)
    begun = time.perf_counter()
    for _ in range(a.warmup):
        training.step()
    warm = time.perf_counter() - begun
    seconds, skipped, loss = [], 0, None
    for _ in range(a.steps):
        scale = training.scaler.get_scale()
        took, loss = training.step()
        # A step that overflowed leaves AdamW out and is no full step.
        if training.scaler.get_scale() < scale:
            skipped += 1
        else:
            seconds.append(took)
    if not seconds:
        return {"failed": f"all {a.steps} steps overflowed: more --warmup"}
    seconds.sort()
    median = seconds[len(seconds) // 2]
    images = 3 * a.batch * a.frames
    return {"images": images, "step_s_min": seconds[0], "step_s_median": median, "images_per_s": images / median,
            "steps": len(seconds), "skipped_steps": skipped, "warmup_s": warm, "loss": loss.item(),
            "fused_adamw": training.fused}


def step(a) -> None:
    device = torch.device(a.device)
    about = {"peer": f"torch {torch.__version__}", "mode": a.mode, "device": name_of(device)}
    try:
        found = timed(a)
    except Exception as error:  # noqa: BLE001: torch.compile's own have no common class
        if is_out_of_memory(error):
            found = {"oom": True}
        elif a.mode.startswith("compile"):
            print(error, file=sys.stderr)
            found = {"failed": first_line(error)}
        else:
            raise
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({**about, **found, "peak_rss_gib": rss, **peaks(device)}))


def seconds_each(device: torch.device, work, times: int = 10, warmups: int = 3) -> float:
    """The mean of `times` in a row."""
    for _ in range(warmups):
        work()
    synchronize(device)
    begun = time.perf_counter()
    for _ in range(times):
        work()
    synchronize(device)
    return (time.perf_counter() - begun) / times


def rates(a) -> None:
    """Random data: a product of zeros draws less power and runs faster."""
    device = torch.device(a.device)
    found = {"peer": f"torch {torch.__version__}", "device": name_of(device), "size": a.size, "copy_gib": a.copy_gib}
    for name, dtype in DTYPES.items():
        x, y = (torch.randn(a.size, a.size, device=device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(x)
        found[f"{name}_flops"] = 2 * a.size**3 / seconds_each(device, lambda: torch.mm(x, y, out=out))
    del x, y, out
    source = torch.empty(int(a.copy_gib * GIB / 4), device=device).normal_()
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    found["copy_bytes_per_s"] = moved / seconds_each(device, lambda: target.copy_(source))
    print(json.dumps(found))


def tensors(value, path: str = "") -> dict[str, torch.Tensor]:
    """Every tensor below `value`, under the way to it."""
    if isinstance(value, torch.Tensor):
        return {path: value}
    if isinstance(value, dict):
        items = value.items()
    elif isinstance(value, (list, tuple)):
        items = enumerate(value)
    else:
        return {}
    return {name: tensor for key, below in items for name, tensor in tensors(below, f"{path}/{key}").items()}


def same(a) -> None:
    files = [torch.load(path, map_location="cpu", weights_only=True) for path in (a.first, a.second)]
    found = {}
    for part in ("model_state", "optimizer_state"):
        one, two = (tensors(file[part]) for file in files)
        if one.keys() != two.keys():
            found[part] = {"same": False, "tensors": len(one), "differ": len(one.keys() ^ two.keys()), "first": "names"}
            continue
        # As bytes: equal numbers of other bits (0 and -0) differ, and NaN is itself.
        differ = [name for name in one if one[name].dtype != two[name].dtype or one[name].shape != two[name].shape
                  or one[name].numpy().tobytes() != two[name].numpy().tobytes()]
        most = max(((one[name].double() - two[name].double()).abs().max().item() for name in differ
                    if one[name].shape == two[name].shape), default=0.0)
        found[part] = {"same": bool(one) and not differ, "tensors": len(one), "differ": len(differ),
                       "first": differ[0] if differ else None, "most": most}
    print(json.dumps(found))


def about(_) -> None:
    """No CUDA is touched where there is none; the libraries are those of NVIDIA's wheels beside torch."""
    import importlib.util

    spec = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations if spec else []) or []]
    libraries = sorted({str(file.parent) for root in roots for file in root.glob("*/lib/lib*.so*")})
    card = torch.cuda.is_available()
    print(json.dumps({
        "torch": torch.__version__, "torch_cuda": torch.version.cuda, "python": sys.version.split()[0],
        "device": torch.cuda.get_device_name(0) if card else None,
        "capability": list(torch.cuda.get_device_capability(0)) if card else None,
        "memory_gib": torch.cuda.get_device_properties(0).total_memory / GIB if card else None,
        "libraries": libraries,
    }))


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = ap.add_subparsers(required=True)
    p = sub.add_parser("step")
    p.add_argument("batch", type=int), p.add_argument("frames", type=int), p.add_argument("img", type=int)
    p.add_argument("--mode", choices=MODES, required=True)
    p.add_argument("--steps", type=int, default=20), p.add_argument("--warmup", type=int, default=5)
    p.add_argument("--device", default="cuda"), p.add_argument("--depth", type=int, default=12, help="blocks of a backbone [12]")
    p.set_defaults(run=step)
    p = sub.add_parser("rates")
    p.add_argument("--device", default="cuda"), p.add_argument("--size", type=int, default=8192)
    p.add_argument("--copy-gib", type=float, default=4.0)
    p.set_defaults(run=rates)
    p = sub.add_parser("same")
    p.add_argument("first"), p.add_argument("second")
    p.set_defaults(run=same)
    p = sub.add_parser("about")
    p.set_defaults(run=about)
    args = ap.parse_args()
    args.run(args)
