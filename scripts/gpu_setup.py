"""What surrounds gpu_check.py's measuring: the machine, its libraries, the pack, clips, and what runs leave."""
from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from gpu_report import say
from gpu_run import Failure, Runner

STREAMS = ("face", "hand_l", "hand_r")
# The loader's names, by the major versions that slt-run takes.
LIBRARIES = [[f"lib{name}.so.{major}" for major in (13, 12)] for name in ("cublas", "cublasLt", "nvrtc")]


def python_with_torch(asked: str | None) -> str | None:
    """An interpreter that has torch, as a path that keeps its virtual environment."""
    test = "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is None)"
    for name in [asked] if asked else [sys.executable, "python3", "python"]:
        path = shutil.which(name or "")
        if path and subprocess.run([path, "-c", test], capture_output=True, check=False).returncode == 0:
            return os.path.abspath(path)
    return None


def missing(run: Runner) -> list[str]:
    """The libraries that the loader finds in no version."""
    test = """import ctypes, json, sys
def found(name):
    try:
        ctypes.CDLL(name)
        return True
    except OSError:
        return False
print(json.dumps({"missing": [names[0] for names in json.loads(sys.argv[1]) if not any(map(found, names))]}))"""
    return run.json([sys.executable, "-c", test, json.dumps(LIBRARIES)], "looking for CUDA's libraries", 60)["missing"]


def find_libraries(run: Runner, folders: list[str]) -> str:
    """Adds torch's own libraries to the loader's path where the loader lacks any; what was done, in words."""
    lacking = missing(run)
    if not lacking:
        return "the loader's"
    before = [os.environ["LD_LIBRARY_PATH"]] if os.environ.get("LD_LIBRARY_PATH") else []
    run.extra["LD_LIBRARY_PATH"] = ":".join(before + folders)
    still = missing(run)
    if still:
        return f"NOT FOUND: {', '.join(still)}, neither by the loader nor in NVIDIA's wheels"
    return f"NVIDIA's wheels ({', '.join(lacking)} not found by the loader)"


def nvidia_smi(run: Runner) -> dict:
    keys = {"gpu": "name", "driver": "driver_version", "gpu_memory": "memory.total", "power_limit": "power.limit",
            "clock_sm_max": "clocks.max.sm", "clock_memory_max": "clocks.max.memory"}
    try:
        said = run.ok(["nvidia-smi", f"--query-gpu={','.join(keys.values())}", "--format=csv,noheader"], "nvidia-smi", 30).stdout
        values = [value.strip() for value in said.strip().splitlines()[0].split(",")]
    except (Failure, IndexError) as failure:
        say(f"nvidia-smi says nothing: {failure}")
        return {}
    return dict(zip(keys, values))


def pack_of(folder: Path) -> dict:
    """What gpu_pack.sh wrote of its build."""
    try:
        found = json.loads((folder / "pack.json").read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def machine(run: Runner, program: Path, python: str, peer: Path, pack: dict, dry: bool) -> dict:
    """What the figures depend on. Sets up the loader's path on the way."""
    torch = run.json([python, peer, "about"], "looking at PyTorch", 120)
    card = nvidia_smi(run)
    libraries = "not looked for" if dry else find_libraries(run, torch["libraries"])
    try:
        cpu = re.search(r"^model name\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        cpu = None
    version = run.ok([program, "--version"], "slt-run", 60).stdout.split()
    return {
        **card, "gpu": card.get("gpu") or torch["device"] or "none", "capability": torch["capability"],
        "cpu": cpu.group(1).strip() if cpu else platform.machine(),
        "cores": len(os.sched_getaffinity(0)), "system": f"{platform.system()} {platform.release()}",
        "slt_run": version[-1] if version else "unknown", "commit": pack.get("commit", "unknown"),
        "torch": f"{torch['torch']} (CUDA {torch['torch_cuda']})", "python": torch["python"],
        "cuda_libraries": libraries, "dry": dry,
    }


def dataset(folder: Path) -> list:
    """Flags for a dataset of the documented layout."""
    names = {"--face-dir": "face", "--hand-left-dir": "hand_l", "--hand-right-dir": "hand_r", "--pose-dir": "pose",
             "--metadata-csv": "subs.csv", "--train-index": "index/train.csv", "--val-index": "index/val.csv"}
    return [part for flag, name in names.items() for part in (flag, folder / name)]


def fill(folder: Path, frames: int) -> int:
    """Gives every clip and stream `frames` frames: drawn clips have from half of that to all of it and lack hands at
    times. What is added are links to the clip's own frames, which cost as much to read. How many were added."""
    added = 0
    for stream in STREAMS:
        clips: dict[str, dict[int, Path]] = {}
        for path in sorted((folder / stream).glob("*_f*.jpg")):
            id, number = re.fullmatch(r"(.+)_f(\d+)", path.stem).groups()
            clips.setdefault(id, {})[int(number)] = path
        for id, found in clips.items():
            own, first = list(found.values()), min(1, min(found))
            digits = len(own[0].stem) - len(id) - 2
            for number in range(first, first + frames):
                if number not in found:
                    os.link(own[number % len(own)], folder / stream / f"{id}_f{number:0{digits}d}.jpg")
                    added += 1
    return added


def metrics(folder: Path) -> list[dict]:
    """The whole lines of a run's metrics so far."""
    try:
        text = (folder / "metrics.jsonl").read_text(encoding="utf-8")
    except OSError:
        return []
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
