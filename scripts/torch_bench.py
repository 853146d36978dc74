"""PyTorch's and Pillow's side of gpu_check.py and bench_vs_torch.py. Each command prints one line of JSON.

    python torch_bench.py step B T IMG [--mode MODE] [--device cpu]      training steps of the network in torch_peer.py
    python torch_bench.py forward B T IMG                  as many forward passes in evaluation
    python torch_bench.py head CLIPS FRAMES --kind KIND    training steps of all that follows the backbones, on features
    python torch_bench.py search CLIPS BEAM LENGTH         beam search of the translating network, keys and values kept
    python torch_bench.py rates SIDE GIB                   matrix rates and copy bandwidth
    python torch_bench.py same A.pt B.pt                   what is not the same in two checkpoints, to the bit
    python torch_bench.py images LIST SIZE                 Pillow and numpy on the files that LIST names
    python torch_bench.py enlarge LIST DIR                 those files as crops of 1000 to 1600 px, below DIR
    python torch_bench.py about                            versions, and what NVIDIA says of the card

Modes: eager-f32, eager-f16 (autocast and a GradScaler), eager-bf16, compile-f16, compile-bf16 (torch.compile and the
fused AdamW). A step is zero_grad, forward, backward and AdamW. PyTorch is given an advantage: its inputs lie on the
device as f32 before the clock starts; slt-run's are bytes, which it normalises in its step. Out of memory is a result.
"""
from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from statistics import median

import torch
from torch import nn

import torch_peer

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}


def seconds_of(device: str, work, times: int = 1, before: int = 0) -> float:
    """The mean of `times` in a row, after others before; the device is idle when the clock starts and when it stops."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    for _ in range(before):
        work()
    wait()
    begun = time.perf_counter()
    for _ in range(times):
        work()
    wait()
    return (time.perf_counter() - begun) / times


def summary(seconds: list[float], images: int) -> dict:
    """The keys of `slt-run bench --json`."""
    middle, rss = median(seconds), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"images": images, "step_s_min": min(seconds), "step_s_median": middle, "images_per_s": images / middle,
            "peak_rss_gib": rss}


def work_of(a, batch: int, frames: int, size: int):
    """A training step of the network, or its forward pass, with one batch on the device."""
    kind, name = a.mode.split("-")
    fused = kind == "compile"
    torch.manual_seed(0)
    c = torch_peer.Model(torch_peer.Backbone(image_size=size, depth=a.depth), sequence_length=frames)
    plain = torch_peer.Classifier(c).to(a.device).train(a.command == "step")
    net = torch.compile(plain) if fused else plain
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-4, weight_decay=0.0, fused=fused or None)
    loss_fn = nn.CrossEntropyLoss(label_smoothing=0.1)
    # Disabled, either passes everything through.
    scaler = torch.amp.GradScaler(a.device, enabled=name == "f16")
    autocast = torch.autocast(a.device, dtype=DTYPES[name], enabled=name != "f32")
    shapes = [(batch, frames, 3, size, size)] * 3 + [(batch, frames, 3 * c.pose_landmarks)]
    inputs = [torch.randn(shape, device=a.device) for shape in shapes]
    inputs.append(torch.ones(batch, frames, dtype=torch.bool, device=a.device))
    y = torch.randint(0, c.vocab_size, (batch,), device=a.device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            loss = loss_fn(net(*inputs), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    def forward() -> None:
        with torch.no_grad(), autocast:
            net(*inputs)

    return step if a.command == "step" else forward


def timed(a, *sizes: str) -> dict:
    """The first steps, --warmup, compile, and settle the GradScaler's scale."""
    torch.set_num_threads(a.threads or torch.get_num_threads())
    batch, frames, size = map(int, sizes)
    try:
        work = work_of(a, batch, frames, size)
        seconds = [seconds_of(a.device, work) for _ in range(a.warmup + a.steps)]
        found = {**summary(seconds[a.warmup:], 3 * batch * frames), "warmup_s": sum(seconds[:a.warmup])}
    except RuntimeError as error:
        # torch.compile wraps what its own code meets, so it is the text that counts.
        if "out of memory" not in str(error).lower():
            raise
        found = {"oom": True}
    if a.device != "cpu":
        # What tensors took at most, and what was taken from the card for them; the context is in neither.
        found["peak_gpu_gib"] = torch.cuda.max_memory_allocated() / 2**30
        found["peak_gpu_reserved_gib"] = torch.cuda.max_memory_reserved() / 2**30
    return found


def head(a, clips: str, frames: str) -> dict:
    """At the documented sizes; KIND is classes or translation, of 24 of 8000 tokens."""
    from torch.nn import functional as F

    import torch_translation_peer as peer

    torch.set_num_threads(a.threads or torch.get_num_threads())
    torch.manual_seed(0)
    clips, frames, length = int(clips), int(frames), 24
    translates, name = a.kind == "translation", a.mode.split("-")[1]
    c = torch_peer.Model(torch_peer.Backbone(image_size=16, depth=1), sequence_length=frames)
    if translates:
        c.vocab_size = 8000
    net = (peer.Translator(c, peer.TextDecoder()) if translates else torch_peer.Classifier(c)).train()
    enc = net.encoder
    del enc.face_backbone, enc.hand_backbone_left, enc.hand_backbone_right
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, weight_decay=0.0)
    autocast = torch.autocast("cpu", dtype=DTYPES[name], enabled=name != "f32")
    features = [torch.randn(clips, frames, c.backbone.embed_dim) for _ in range(3)]
    pose, mask = torch.randn(clips, frames, 3 * c.pose_landmarks), torch.ones(clips, frames, dtype=torch.bool)
    tokens = torch.randint(4, c.vocab_size, (clips, length + 1))
    classes = torch.randint(0, c.vocab_size, (clips,))

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with autocast:
            projectors = enc.face_projector, enc.hand_left_projector, enc.hand_right_projector
            z = enc.fusion(*(of(x) for of, x in zip(projectors, features)), enc.pose_projector(pose))
            z = enc.temporal(enc.positional(z), ~mask)
            if translates:
                loss = peer.token_loss(net.decoder(tokens[:, :-1], z, ~mask), tokens, 0.1)
            else:
                loss = F.cross_entropy(net.decoder(z, ~mask), classes, label_smoothing=0.1)
        loss.backward()
        optimizer.step()

    return summary([seconds_of("cpu", step) for _ in range(a.warmup + a.steps)][a.warmup:], 3 * clips * frames)


def rates(a, side: str, gib: str) -> dict:
    """Random data: a product of zeros draws less power and runs faster."""
    found, n = {}, int(side)
    for name, dtype in DTYPES.items():
        x, y, out = (torch.randn(n, n, device=a.device, dtype=dtype) for _ in range(3))
        found[name] = 2 * n**3 / seconds_of(a.device, lambda: torch.mm(x, y, out=out), 10, 3)
    source = torch.randn(int(float(gib) * 2**28), device=a.device)
    target = torch.empty_like(source)
    return {**found, "copy": 2 * source.nbytes / seconds_of(a.device, lambda: target.copy_(source), 10, 3)}


def bits(value):
    """Tensors as bytes: equal numbers of other bits (0 and -0) differ, and NaN is itself."""
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.numpy().tobytes()
    return {key: bits(below) for key, below in value.items()} if isinstance(value, dict) else value


def same(_, *paths: str) -> dict:
    one, two = (torch.load(path, map_location="cpu", weights_only=True) for path in paths)
    return {part: [key for key in {**one[part], **two[part]} if bits(one[part].get(key)) != bits(two[part].get(key))]
            for part in ("model_state", "optimizer_state")}


def images(a, names: str, size: str) -> dict:
    """What the script's dataset does with a frame, in one thread."""
    import numpy as np
    from PIL import Image

    mean, std = np.array((0.485, 0.456, 0.406), np.float32), np.array((0.229, 0.224, 0.225), np.float32)
    paths = Path(names).read_text().splitlines()

    def load() -> None:
        for path in paths:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB").resize((int(size), int(size))), dtype=np.float32)
            np.ascontiguousarray(((pixels / 255.0 - mean) / std).transpose(2, 0, 1))

    return summary([seconds_of("cpu", load) for _ in range(a.steps)], len(paths))


def search(a, clips: str, beam: str, length: str) -> dict:
    """What `generate` of the usual libraries does, at the documented sizes: all clips side by side, keys and values of
    tokens and frames kept, the best `beam` of each clip's candidates go on. No hypothesis ends before `length`."""
    from torch.nn import functional as F

    import torch_translation_peer as peer

    torch.manual_seed(0)
    clips, beam, length, frames, width, heads = int(clips), int(beam), int(length), 128, 512, 8
    net = peer.Decoder(width, 8000, peer.TextDecoder()).eval()
    places = peer.sinusoid(length, width)

    def split(x):
        return x.unflatten(-1, (heads, -1)).transpose(1, 2)

    def attend(layer, q, k, v):
        return layer.out_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))

    def run():
        memory = torch.randn(clips, frames, width)
        cross = [[split(F.linear(memory, w, b)).repeat_interleave(beam, 0) for w, b in
                  zip(layer.multihead_attn.in_proj_weight.chunk(3)[1:], layer.multihead_attn.in_proj_bias.chunk(3)[1:])]
                 for layer in net.layers]
        kept = [None] * len(net.layers)
        tokens = torch.full((clips * beam, 1), peer.BOS)
        totals = torch.full((clips, beam), float("-inf"))
        totals[:, 0] = 0
        for step in range(length):
            x = net.embedding(tokens[:, -1:]) * width**0.5 + places[step]
            for at, layer in enumerate(net.layers):
                q, k, v = map(split, F.linear(layer.norm1(x), layer.self_attn.in_proj_weight, layer.self_attn.in_proj_bias).chunk(3, -1))
                if kept[at] is not None:
                    k, v = torch.cat([kept[at][0], k], 2), torch.cat([kept[at][1], v], 2)
                kept[at] = [k, v]
                x = x + attend(layer.self_attn, q, k, v)
                attn = layer.multihead_attn
                q = split(F.linear(layer.norm2(x), attn.in_proj_weight[:width], attn.in_proj_bias[:width]))
                x = x + attend(attn, q, *cross[at])
                x = x + layer.linear2(F.relu(layer.linear1(layer.norm3(x))))
            logp = F.log_softmax(net.norm(x[:, 0]) @ net.embedding.weight.t(), -1).unflatten(0, (clips, beam))
            logp[..., : peer.UNK + 1] = float("-inf")
            totals, best = (totals.unsqueeze(-1) + logp).flatten(1).topk(beam, 1)
            rows = (best // logp.size(-1) + torch.arange(clips).unsqueeze(1) * beam).flatten()
            tokens = torch.cat([tokens[rows], (best % logp.size(-1)).flatten().unsqueeze(1)], 1)
            kept = [[part[rows] for part in layer] for layer in kept]

    with torch.inference_mode():
        found = summary([seconds_of("cpu", run, before=int(not i)) for i in range(a.steps)], 3 * clips * frames)
    return found | {"clips": clips, "clip_s_min": found["step_s_min"] / clips}


def enlarge(_, names: str, folder: str) -> dict:
    """Noise makes up for the detail that enlarging cannot bring."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for source in map(Path, Path(names).read_text().splitlines()):
        with Image.open(source) as image:
            pixels = np.asarray(image.convert("RGB").resize(random.integers(1000, 1601, 2)), dtype=np.float32)
        noisy = (pixels + random.normal(0, 3, pixels.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(Path(folder, source.parent.name, source.name), quality=90)
    return {}


def about(_) -> dict:
    found = {"python": sys.version.split()[0], "torch": torch.__version__, "prefix": sys.prefix, "gpu": None}
    for name in ("numpy", "pillow"):
        found[name] = next((wheel.version for wheel in metadata.distributions(name=name)), None)
    if torch.cuda.is_available():
        fields = "driver_version,memory.total,power.limit,clocks.max.sm,clocks.max.memory"
        command = f"nvidia-smi -i 0 --query-gpu={fields} --format=csv,noheader"
        found |= {"gpu": torch.cuda.get_device_name(), "card": subprocess.getoutput(command)}
    return found


if __name__ == "__main__":
    commands = {"step": timed, "forward": timed, **{run.__name__: run for run in (head, search, rates, same, images, enlarge, about)}}
    options = {"mode": "eager-f32", "device": "cuda", "steps": 5, "warmup": 0, "threads": 0, "depth": 12,
               "kind": "classes"}
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("command", choices=commands)
    ap.add_argument("operands", nargs="*")
    for name, default in options.items():
        ap.add_argument(f"--{name}", type=type(default), default=default)
    args = ap.parse_args()
    print(json.dumps(commands[args.command](args, *args.operands)))
