"""What a training step of the default network cannot do without: operations and bytes, for gpu_check.py.

Everything is counted from the sizes. `N` tokens of width `d` are a frame's patches and its class token: 197 of 384 at
224 px (ViT-S/16).
"""
from __future__ import annotations

PATCH, WIDTH, MLP = 16, 384, 4
PROJECTOR, MODEL, TEMPORAL_LAYERS, FEEDFORWARD, POSE, CLASSES = 256, 512, 6, 2048, 39, 32_000


def tokens(size: int) -> int:
    return (size // PATCH) ** 2 + 1


def image_flops(size: int, depth: int, whole: bool) -> float:
    """One image through one backbone, forward; a multiplication and an addition are two.

    A block is four products, of 3d, d, 4d and d columns with d, d, d and 4d rows, and attention's two of N x N x d:
    N (6 + 2 + 8 + 8) d^2 + 4 N^2 d = 24 N d^2 + 4 N^2 d. `whole` counts the network as it is written. Otherwise the last
    block is that of the class token, the only one that is used: keys and values of all tokens, all else of one.
    """
    n, d = tokens(size), WIDTH
    patches = 2 * (n - 1) * 3 * PATCH**2 * d
    block = 24 * n * d**2 + 4 * n**2 * d
    last = block if whole else (4 * n + 20) * d**2 + 4 * n * d
    return patches + (depth - 1) * block + last


def head_flops(clips: int, frames: int) -> float:
    """Projectors, fusion, temporal encoder and decoder, forward."""
    projectors = 2 * PROJECTOR * (3 * (WIDTH + PROJECTOR) + POSE + PROJECTOR)
    fusion = 2 * 4 * PROJECTOR * MODEL
    layer = 2 * (4 * MODEL**2 + 2 * MODEL * FEEDFORWARD) + 4 * frames * MODEL
    return clips * (frames * (projectors + fusion + TEMPORAL_LAYERS * layer) + 2 * MODEL * CLASSES)


def step_flops(clips: int, frames: int, size: int, depth: int, whole: bool) -> float:
    """Forward and backward: three times forward, as each product has two in backward.

    The patches' product has one, as no image needs a gradient: it is 1.3 % of the whole, so this is 0.4 % too much.
    """
    return 3 * (3 * clips * frames * image_flops(size, depth, whole) + head_flops(clips, frames))


def step_bytes(clips: int, frames: int, size: int, depth: int, parameters: int) -> dict[str, float]:
    """The traffic with the card's memory where each product, and attention as a whole, reads its operands once and writes
    its result once, in 16 bits, and all else (norms, GELU, residuals) is done on the way.

    Forward, columns of width d a token and block: products 1 -> 3, 1 -> 1, 1 -> 4, 4 -> 1, attention 3 -> 1, the two
    residuals read: 4 + 2 + 5 + 5 + 4 + 2 = 22. Backward moves twice that: a product's two read the gradient, the input
    and write the input's gradient. Weights: AdamW reads parameter, two moments and gradient and writes three of
    them in 32 bits, the gradient is written once, and a copy of 16 bits is written once and read twice.
    """
    columns = 3 * 22
    activations = 3.0 * clips * frames * tokens(size) * depth * columns * WIDTH * 2
    images = 3.0 * clips * frames * 3 * size**2
    weights = parameters * (7 * 4 + 4 + 3 * 2)
    return {"activations": activations, "images": images, "weights": float(weights)}


def floor(clips: int, frames: int, size: int, depth: int, parameters: int, flops: float, bandwidth: float) -> dict:
    """The least seconds at the measured rates: of the matrix units, of the memory, and of both where they never overlap
    and where they always do. Backbone blocks alternate between the two, so a good step lies between."""
    needed = step_flops(clips, frames, size, depth, whole=False)
    moved = step_bytes(clips, frames, size, depth, parameters)
    matrix, memory = needed / flops, sum(moved.values()) / bandwidth
    return {"flops": needed, "flops_as_written": step_flops(clips, frames, size, depth, whole=True), "bytes": moved,
            "matrix_s": matrix, "memory_s": memory, "overlapped_s": max(matrix, memory), "in_turn_s": matrix + memory}
