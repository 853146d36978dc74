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
import importlib.util
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


def about_device(device: torch.device) -> dict:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"peer": f"torch {torch.__version__}", "device": name}


def seconds_of(device: torch.device, work, times: int = 1) -> float:
    """The mean of `times` in a row, the device idle before and after."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    begun = time.perf_counter()
    for _ in range(times):
        work()
    wait()
    return (time.perf_counter() - begun) / times


class Training:
    """The network, its optimizer and one batch on the device."""

    def __init__(self, a):
        kind, _, name = a.mode.partition("-")
        self.device, self.dtype, self.fused = torch.device(a.device), DTYPES[name], kind == "compile"
        torch.manual_seed(0)
        c = torch_peer.Model(torch_peer.Backbone(image_size=a.img, depth=a.depth), sequence_length=a.frames)
        plain = torch_peer.Classifier(c).to(self.device).train()
        self.net = torch.compile(plain) if self.fused else plain
        self.optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-4, weight_decay=0.0, fused=self.fused or None)
        self.loss_fn = nn.CrossEntropyLoss(label_smoothing=0.1)
        # Off, it passes everything through; so does an autocast that is not enabled.
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=name == "f16")
        self.autocast = torch.autocast(self.device.type, dtype=torch.bfloat16 if name == "f32" else self.dtype,
                                       enabled=name != "f32")
        on = {"device": self.device}
        images = [torch.randn(a.batch, a.frames, 3, a.img, a.img, **on) for _ in range(3)]
        mask = torch.ones(a.batch, a.frames, dtype=torch.bool, **on)
        self.inputs = (*images, torch.randn(a.batch, a.frames, 3 * c.pose_landmarks, **on), mask)
        self.y = torch.randint(0, c.vocab_size, (a.batch,), **on)

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast:
            self.loss = self.loss_fn(self.net(*self.inputs), self.y)
        self.scaler.scale(self.loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()


def timed(a) -> dict:
    training = Training(a)
    warm = sum(seconds_of(training.device, training.step) for _ in range(a.warmup))
    seconds = []
    for _ in range(a.steps):
        scale = training.scaler.get_scale()
        took = seconds_of(training.device, training.step)
        # A step that overflowed leaves AdamW out and is no full step.
        seconds += [took] if training.scaler.get_scale() >= scale else []
    if not seconds:
        return {"failed": f"all {a.steps} steps overflowed: more --warmup"}
    median, images = sorted(seconds)[len(seconds) // 2], 3 * a.batch * a.frames
    return {"images": images, "step_s_min": min(seconds), "step_s_median": median, "images_per_s": images / median,
            "steps": len(seconds), "skipped_steps": a.steps - len(seconds), "warmup_s": warm, "loss": training.loss.item(),
            "fused_adamw": training.fused}


def step(a) -> dict:
    device = torch.device(a.device)
    try:
        found = timed(a)
    except Exception as error:  # noqa: BLE001: torch.compile's own have no common class
        # torch.compile wraps what its own code meets, so the text counts too.
        if isinstance(error, torch.cuda.OutOfMemoryError) or "out of memory" in str(error).lower():
            found = {"oom": True}
        elif a.mode.startswith("compile"):
            print(error, file=sys.stderr)
            found = {"failed": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"[:300]}
        else:
            raise
    # What PyTorch's tensors took at most, and what it had taken from the card for them; the context is in neither.
    peaks = [torch.cuda.max_memory_allocated, torch.cuda.max_memory_reserved]
    allocated, reserved = (peak(device) / GIB if device.type == "cuda" else None for peak in peaks)
    return {**about_device(device), "mode": a.mode, **found, "peak_gpu_gib": allocated, "peak_gpu_reserved_gib": reserved,
            "peak_rss_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def rates(a) -> dict:
    """Random data: a product of zeros draws less power and runs faster."""
    device = torch.device(a.device)

    def seconds_each(work) -> float:
        seconds_of(device, work, 3)
        return seconds_of(device, work, 10)

    found = {**about_device(device), "size": a.size, "copy_gib": a.copy_gib}
    for name, dtype in DTYPES.items():
        x, y = (torch.randn(a.size, a.size, device=device, dtype=dtype) for _ in range(2))
        out = torch.empty_like(x)
        found[f"{name}_flops"] = 2 * a.size**3 / seconds_each(lambda: torch.mm(x, y, out=out))
    del x, y, out
    source = torch.empty(int(a.copy_gib * GIB / 4), device=device).normal_()
    target = torch.empty_like(source)
    moved = 2 * source.numel() * source.element_size()
    return {**found, "copy_bytes_per_s": moved / seconds_each(lambda: target.copy_(source))}


def tensors(value, path: str = "") -> dict[str, torch.Tensor]:
    """Every tensor below `value`, under the way to it."""
    if isinstance(value, torch.Tensor):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return {name: tensor for key, below in items for name, tensor in tensors(below, f"{path}/{key}").items()}


def same(a) -> dict:
    files = [torch.load(path, map_location="cpu", weights_only=True) for path in (a.first, a.second)]
    found = {}
    for part in ("model_state", "optimizer_state"):
        one, two = (tensors(file[part]) for file in files)
        if one.keys() != two.keys():
            found[part] = {"same": False, "tensors": len(one), "differ": len(one.keys() ^ two.keys()), "first": "names"}
            continue
        # As bytes: equal numbers of other bits (0 and -0) differ, and NaN is itself.
        differ = [name for name, x in one.items() if (x.dtype, x.shape) != (two[name].dtype, two[name].shape)
                  or x.numpy().tobytes() != two[name].numpy().tobytes()]
        most = max(((one[name].double() - two[name].double()).abs().max().item() for name in differ
                    if one[name].shape == two[name].shape), default=0.0)
        found[part] = {"same": bool(one) and not differ, "tensors": len(one), "differ": len(differ),
                       "first": differ[0] if differ else None, "most": most}
    return found


def about(_) -> dict:
    """No CUDA is touched where there is none; the libraries are those of NVIDIA's wheels beside torch."""
    spec = importlib.util.find_spec("nvidia")
    roots = [Path(root) for root in (spec.submodule_search_locations if spec else []) or []]
    card = torch.cuda.is_available()
    return {
        "torch": torch.__version__, "torch_cuda": torch.version.cuda, "python": sys.version.split()[0],
        "device": torch.cuda.get_device_name(0) if card else None,
        "capability": list(torch.cuda.get_device_capability(0)) if card else None,
        "memory_gib": torch.cuda.get_device_properties(0).total_memory / GIB if card else None,
        "libraries": sorted({str(file.parent) for root in roots for file in root.glob("*/lib/lib*.so*")}),
    }


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = ap.add_subparsers(required=True)
    commands = {run.__name__: sub.add_parser(run.__name__) for run in (step, rates, same, about)}
    for run in (step, rates, same, about):
        commands[run.__name__].set_defaults(run=run)
    for name in ("batch", "frames", "img"):
        commands["step"].add_argument(name, type=int)
    commands["step"].add_argument("--mode", choices=MODES, required=True)
    for command, flag, kind, default in (("step", "--steps", int, 20), ("step", "--warmup", int, 5), ("step", "--depth", int, 12),
                                         ("step", "--device", str, "cuda"), ("rates", "--device", str, "cuda"),
                                         ("rates", "--size", int, 8192), ("rates", "--copy-gib", float, 4.0)):
        commands[command].add_argument(flag, type=kind, default=default)
    commands["same"].add_argument("first"), commands["same"].add_argument("second")
    args = ap.parse_args()
    print(json.dumps(args.run(args)))
