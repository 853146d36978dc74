"""Made the .pt files beside it with PyTorch 2.15 and NumPy 2.4: python make.py"""

import argparse
import collections
import pathlib

import numpy as np
import torch

torch.manual_seed(0)
grid = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
tied = torch.arange(6, dtype=torch.float64)
layer = torch.nn.Linear(3, 2)
with torch.no_grad():
    layer.weight.copy_(torch.arange(6).reshape(2, 3))
    layer.bias.fill_(0.5)

odd = {
    "transposed": grid.permute(2, 0, 1),
    "slice": grid[:, 1:, ::2],
    "expanded": torch.tensor([7.0]).expand(3, 2),
    "tied_a": tied,
    "tied_b": tied[2:5],
    "scalar": torch.tensor(2.5),
    "empty": torch.zeros(0, 3),
    "types": {str(d).split(".")[1]: torch.tensor([0, 1, 2]).to(d) for d in [
        torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
        torch.uint8, torch.bool]},
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "layer": layer.state_dict(),
    "size": torch.Size([2, 3]),
    "numpy": {"f8": np.float64(0.25), "f4": np.float32(0.5), "i8": np.int64(-7), "b1": np.bool_(True)},
    "array": np.arange(3),
    "device": torch.device("cpu"),
    "dtype": torch.float16,
    "path": pathlib.Path("runs") / "a",
    "args": argparse.Namespace(lr=0.1, name="x"),
    "set": {1, 2},
    "bytes": b"\x00\xff",
    "no_bytes": b"",
    "counter": collections.Counter("aab"),
    "numbers": [0, 255, 256, 65535, 65536, -1, 2**31, -(2**31), 2**62, 2**80, 0.1, float("inf"), True, None],
    "text": "ñandú 🦤",
    "nested": ([{"a": (1,)}, []], ()),
    5: "five",
}
for protocol in (2, 3, 4, 5):
    torch.save(odd, f"odd_protocol_{protocol}.pt", pickle_protocol=protocol)
torch.save({"model_state": layer.state_dict()}, "legacy.pt", _use_new_zipfile_serialization=False)


class Evil:
    def __reduce__(self):
        import os

        return os.system, ("touch ran_code",)


torch.save({"model_state": layer.state_dict(), "extra": Evil()}, "evil.pt")
torch.jit.script(layer).save("script.pt")
