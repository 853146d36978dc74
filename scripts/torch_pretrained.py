#!/usr/bin/env python3
"""Vision transformers of timm with random weights, their pixels and their features, as cases for `model.backbone.init`.

    scripts/torch_pretrained.py DIR [--seed N] [--small]
    scripts/torch_pretrained.py FILE.json --positions

Needs torch, timm, numpy and safetensors. For each network and image size, DIR gets NAME.json (the fields of
[model.backbone], the image size, the file), NAME.npz (`pixels` (N, 3, H, W), normalised, and `features` (N, D), the class
token behind the last norm) and a file of weights: timm's `state_dict()` as .safetensors or .pth, or DINO's checkpoint with
a student and a teacher. At a size that is not the network's own, positions are resampled as timm resamples them.
`PRETRAINED_CASES=DIR cargo test --release --test suite pretrained` compares; --small makes those in tests/data. --positions
writes grids, and what PyTorch resamples them to: tests/data/resampled_positions.json.
"""

import argparse
import json
import pathlib

import numpy as np
import torch
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer

SMALL = dict(embed_dim=24, depth=2, num_heads=3, num_classes=0)
FULL = [
    ("vit_small_patch16_224", dict(patch_size=16, embed_dim=384, depth=12, num_heads=6, img_size=224), [224, 160]),
    ("vit_tiny_patch16_224", dict(patch_size=16, embed_dim=192, depth=12, num_heads=3, img_size=224), [224, 288]),
    ("vit_small_patch14_dinov2", dict(patch_size=14, embed_dim=384, depth=12, num_heads=6, img_size=518, init_values=1e-5), [518, 224]),
]
TINY = [
    ("plain", dict(patch_size=8, img_size=32, **SMALL), [32, 24, 56]),
    ("layer_scale", dict(patch_size=7, img_size=63, init_values=1e-5, **SMALL), [63, 28]),
    ("no_qkv_bias", dict(patch_size=8, img_size=32, qkv_bias=False, **SMALL), [32]),
]


def randomised(make, seed):
    """A network whose numbers all matter: initial biases are zeros, and LayerScale begins near zero."""
    torch.manual_seed(seed)
    network = VisionTransformer(**make).eval()
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            noise = torch.randn_like(parameter)
            if "gamma" in name:
                parameter.copy_(0.5 + 0.3 * noise)
            elif name.endswith("norm.weight") or ".norm" in name and name.endswith("weight"):
                parameter.copy_(1 + 0.1 * noise)
            elif parameter.dim() < 2:
                parameter.copy_(0.1 * noise)
            elif name in ("cls_token", "pos_embed"):
                parameter.copy_(0.3 * noise)
    return network


def write(folder, name, network, make, kind):
    """The weights as `kind` has them; the file's name."""
    state = {key: value.clone() for key, value in network.state_dict().items()}
    state["head.weight"], state["head.bias"] = torch.randn(10, make["embed_dim"]), torch.zeros(10)
    if kind == "safetensors":
        save_file({key: value.contiguous() for key, value in state.items()}, folder / f"{name}.safetensors")
        return f"{name}.safetensors"
    if kind == "dino":
        prefixed = {f"module.backbone.{key}": value for key, value in state.items() if not key.startswith("head")}
        student = {key: torch.zeros_like(value) for key, value in prefixed.items()}
        torch.save({"student": student, "teacher": prefixed, "epoch": 3}, folder / f"{name}.pth")
    else:
        torch.save({key: value.half() for key, value in state.items()} if kind == "half" else state, folder / f"{name}.pth")
    return f"{name}.pth"


def at_size(network, make, size):
    """The network for another image size, its positions resampled."""
    if size == make["img_size"]:
        return network
    other = VisionTransformer(**{**make, "img_size": size}).eval()
    state = dict(network.state_dict())
    side = size // make["patch_size"]
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], new_size=[side, side], num_prefix_tokens=1)
    other.load_state_dict(state)
    return other


def positions(out):
    """Square grids (from, from, width) at (to, to) places."""
    grids = [(14, 16, 1), (14, 7, 1), (14, 24, 1), (37, 16, 1), (16, 37, 1), (7, 14, 1), (3, 3, 2), (1, 4, 3), (4, 1, 3), (2, 5, 2)]
    cases = []
    for before, after, width in grids:
        values = torch.randn(before, before, width)
        resampled = torch.nn.functional.interpolate(
            values.permute(2, 0, 1)[None], size=(after, after), mode="bicubic", antialias=True, align_corners=False)
        flat = [[round(x, 8) for x in t.flatten().tolist()] for t in (values, resampled[0].permute(1, 2, 0))]
        cases.append({"from": before, "to": after, "width": width, "values": flat[0], "expected": flat[1]})
    out.write_text("[\n" + ",\n".join(map(json.dumps, cases)) + "\n]\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("dir", type=pathlib.Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--positions", action="store_true")
    args = parser.parse_args()
    if args.positions:
        torch.manual_seed(args.seed)
        return positions(args.dir)
    args.dir.mkdir(parents=True, exist_ok=True)
    for at, (name, make, sizes) in enumerate(TINY if args.small else FULL):
        network = randomised(make, args.seed + at)
        for kind, size in zip(["safetensors", "dino", "pth"], sizes):
            case = f"{name}_{size}"
            file = write(args.dir, case, network, make, kind)
            torch.manual_seed(args.seed + 100 + size)
            pixels = torch.randn(2, 3, size, size).half().float()
            with torch.no_grad():
                # timm's `fc_norm` is none here: the class token behind the last norm.
                features = at_size(network, make, size).forward_features(pixels)[:, 0]
            np.savez_compressed(args.dir / f"{case}.npz", pixels=pixels.numpy().astype(np.float16), features=features.numpy())
            fields = {key: make[key] for key in ("patch_size", "embed_dim", "depth", "num_heads")}
            about = {"file": file, "image_size": size, "backbone": {**fields, "layer_norm_eps": 1e-6}}
            (args.dir / f"{case}.json").write_text(json.dumps(about) + "\n")
            print(case, file, float(features.norm()))


if __name__ == "__main__":
    main()
