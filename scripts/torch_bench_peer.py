"""The PyTorch and Pillow side of bench_vs_torch.py, where torch_peer.py has none. Prints one line of JSON.

    python torch_bench_peer.py forward B T IMG [--steps 5] [--threads N]   time + peak RSS of a forward pass in evaluation
    python torch_bench_peer.py images LIST SIZE [--passes 5]              Pillow and numpy on the files that LIST names
    python torch_bench_peer.py enlarge LIST                               its files (SOURCE TAB TARGET) as crops of 1000 to 1600 px
    python torch_bench_peer.py versions
"""
from __future__ import annotations

import argparse
import json
import random
import resource
import time
from pathlib import Path

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def report(seconds: list[float], images: int, **more) -> None:
    """The keys that torch_peer.py step prints."""
    median = sorted(seconds)[len(seconds) // 2]
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({**more, "images": images, "step_s_min": min(seconds), "step_s_median": median,
                      "images_per_s": images / median, "peak_rss_gib": rss}))


def forward(a) -> None:
    import torch
    import torch_peer

    torch.set_num_threads(a.threads)
    torch.manual_seed(0)
    c = torch_peer.Model(torch_peer.Backbone(image_size=a.img), sequence_length=a.frames)
    net = torch_peer.Classifier(c).eval()
    seconds = []
    with torch.no_grad():
        for _ in range(a.steps):
            x = [torch.randn(a.batch, a.frames, 3, a.img, a.img) for _ in range(3)]
            pose, mask = torch.randn(a.batch, a.frames, 39), torch.ones(a.batch, a.frames, dtype=torch.bool)
            t = time.perf_counter()
            net(*x, pose, mask)
            seconds.append(time.perf_counter() - t)
    report(seconds, 3 * a.batch * a.frames, peer=f"torch {torch.__version__}")


def images(a) -> None:
    """What the script's dataset does with a frame, in one thread."""
    import numpy as np
    import PIL
    from PIL import Image

    paths = Path(a.list).read_text().splitlines()
    mean, std = np.array(MEAN, np.float32), np.array(STD, np.float32)
    seconds = []
    for _ in range(a.passes):
        t = time.perf_counter()
        for path in paths:
            with Image.open(path) as image:
                pixels = np.asarray(image.convert("RGB").resize((a.size, a.size)), dtype=np.float32)
            np.ascontiguousarray(((pixels / 255.0 - mean) / std).transpose(2, 0, 1))
        seconds.append(time.perf_counter() - t)
    report(seconds, len(paths), peer=f"Pillow {PIL.__version__}")


def enlarge(a) -> None:
    """Noise makes up for the detail that enlarging cannot bring."""
    import numpy as np
    from PIL import Image

    sides, noise = random.Random(0), np.random.default_rng(0)
    for line in Path(a.list).read_text().splitlines():
        source, target = line.split("\t")
        size = (sides.randrange(1000, 1601), sides.randrange(1000, 1601))
        with Image.open(source) as image:
            pixels = np.asarray(image.convert("RGB").resize(size), dtype=np.float32)
        pixels = (pixels + noise.normal(0, 3, pixels.shape).astype(np.float32)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(target, quality=90)
    print("{}")


def versions(_) -> None:
    import numpy
    import PIL
    import torch

    print(json.dumps({"torch": torch.__version__, "numpy": numpy.__version__, "pillow": PIL.__version__}))


if __name__ == "__main__":
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = ap.add_subparsers(required=True)
    p = sub.add_parser("forward")
    p.add_argument("batch", type=int), p.add_argument("frames", type=int), p.add_argument("img", type=int)
    p.add_argument("--steps", type=int, default=5), p.add_argument("--threads", type=int, default=2)
    p.set_defaults(run=forward)
    p = sub.add_parser("images")
    p.add_argument("list"), p.add_argument("size", type=int), p.add_argument("--passes", type=int, default=5)
    p.set_defaults(run=images)
    p = sub.add_parser("enlarge")
    p.add_argument("list")
    p.set_defaults(run=enlarge)
    p = sub.add_parser("versions")
    p.set_defaults(run=versions)
    args = ap.parse_args()
    args.run(args)
