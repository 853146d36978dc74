"""What a training step of the default network cannot do without, counted from its sizes, for gpu_check.py.

`n` tokens of width `d` are a frame's patches and its class token: 197 of 384 at 224 px (ViT-S/16).
"""


def step_flops(clips: int, frames: int, size: int, depth: int) -> float:
    """Operations; a multiplication and an addition are two. Backward takes twice forward's, as each product has two
    there. (The patches' has one, as no image needs a gradient: this is 0.4 % too much.)

    A block is four products, of 3d, d, 4d and d columns with d, d, d and 4d rows, and attention's two of n x n x d:
    n (6 + 2 + 8 + 8) d^2 + 4 n^2 d = 24 n d^2 + 4 n^2 d. The last block is that of the class token, the only one used:
    keys and values of all tokens, all else of one.
    """
    n, d, model = (size // 16) ** 2 + 1, 384, 512
    patches = 2 * (n - 1) * 3 * 16**2 * d
    image = patches + (depth - 1) * (24 * n * d**2 + 4 * n**2 * d) + (4 * n + 20) * d**2 + 4 * n * d
    projectors = 2 * 256 * (3 * (d + 256) + 39 + 256)
    fusion = 2 * 4 * 256 * model
    temporal = 6 * (2 * (4 * model**2 + 2 * model * 2048) + 4 * frames * model)
    return 3 * clips * (frames * (3 * image + projectors + fusion + temporal) + 2 * model * 32_000)


def step_bytes(clips: int, frames: int, size: int, depth: int, parameters: int) -> float:
    """Traffic with the card's memory where each product, and attention as a whole, reads its operands once and writes
    its result once, in 16 bits, and all else (norms, GELU, residuals) is done on the way.

    Forward, columns of width d a token and block: products 1 -> 3, 1 -> 1, 1 -> 4, 4 -> 1, attention 3 -> 1, the two
    residuals read: 4 + 2 + 5 + 5 + 4 + 2 = 22. Backward moves twice that: a product's two read the gradient, the input
    and write the input's gradient. Weights: AdamW reads parameter, two moments and gradient and writes three of
    them in 32 bits, the gradient is written once, and a copy of 16 bits is written once and read twice.
    """
    n, d = (size // 16) ** 2 + 1, 384
    return 3 * clips * frames * (n * depth * 3 * 22 * d * 2 + 3 * size**2) + parameters * (7 * 4 + 4 + 3 * 2)
