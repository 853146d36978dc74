#!/usr/bin/env python3
"""Tests and measures slt-run on this machine's NVIDIA card, against PyTorch on the same card. Needs no network, no Rust.

    scripts/gpu_check.sh BIN_DIR [--shared DIR] [--out DIR] [--python PY] [--quick] [--only a,b,e] [--dry]

BIN_DIR is what scripts/gpu_pack.sh made. Parts, in the order in which they run:
  a  the tests that need a card, with SLT_RUN_NEED_GPU=1: no card is a failure then, not a test left out
  b  the mini corpus in f32, bfloat16 and float16: accuracy and loss
  c  a run under amp that is stopped and resumed: the same checkpoint, to the bit?
  d  clips of 128 frames, 16 loader threads: how long does the card wait?
  e  speed and memory of a training step, in turns with PyTorch eager and compiled
  f  the card's matrix rate and copy bandwidth, the floor that they imply, and what is reached of it

OUT/gpu_check.json has everything, OUT/gpu_check.txt is a table (printed too), OUT/gpu_check.log what each program said.
All three are whole after every single result. Parts that another call with the same OUT, card and build has measured
stay: where one command's time is limited, a few calls with --only share the work. Exit code 0: every target of the
parts asked for holds; 1: not all; 2: a wrong call. --dry goes through all of it on the CPU in tiny sizes, to try it.
"""
from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

import gpu_floor
from bench_vs_torch import ROOT, SCRIPTS, rate, seconds, times
from gpu_lib import Failure, Report, Runner, ended, last_words, machine, say

CONFIG, PEER = ROOT / "configs" / "multistream_v9.toml", SCRIPTS / "torch_gpu_peer.py"
PARTS = {"a": "tests on the card", "b": "mini corpus", "c": "stopped and resumed", "d": "feeding",
         "e": "a training step, against PyTorch", "f": "the card's rates and the floor"}
LAYOUT = {"--face-dir": "face", "--hand-left-dir": "hand_l", "--hand-right-dir": "hand_r", "--pose-dir": "pose",
          "--metadata-csv": "subs.csv", "--train-index": "index/train.csv", "--val-index": "index/val.csv"}
# Time that part e's torch.compile leaves for the rates, which need less.
RESERVE = 45.0


def sizes(quick: bool, dry: bool) -> argparse.Namespace:
    """How much is done: in full, for --quick, and for --dry."""
    s = dict(limit=1200, seeds=[0, 1, 2], resumed=["bfloat16", "float16"], batch=4, frames=16, size=224, depth=12, steps=100,
             warmup=20, long=128, long_steps=10, chunk=64, curve=[16, 32, 64, 128], rounds=2, clips=64, clip_frames=128,
             clip_epochs=6, product=8192, copy_gib=4.0)
    if quick:
        s |= dict(limit=575, seeds=[0], resumed=["bfloat16"], steps=30, warmup=10, long_steps=4, curve=[32, 128], rounds=1,
                  clip_epochs=3)
    if dry:
        s |= dict(seeds=[0], resumed=["bfloat16"], batch=1, frames=2, size=32, depth=1, steps=2, warmup=1, long=4, long_steps=1,
                  chunk=2, curve=[2, 4], rounds=1, clips=8, clip_frames=8, clip_epochs=2, product=256, copy_gib=0.02)
    return argparse.Namespace(**s)


def flops(number: float) -> str:
    return f"{number / 1e12:,.{0 if number >= 1e13 else 3}f} TFLOP/s"


def percent(share: float) -> str:
    return f"{100 * share:.{0 if share >= 0.1 else 2}f} %"


def gb(found_gib: float | None) -> str:
    return "not said" if found_gib is None else f"{found_gib * 2**30 / 1e9:.1f} GB"


def dataset(folder: Path) -> list:
    """Flags for a dataset of the documented layout."""
    return [part for flag, name in LAYOUT.items() for part in (flag, folder / name)]


def metrics(folder: Path) -> list[dict]:
    """The whole lines of a run's metrics so far."""
    path = folder / "metrics.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def fill(folder: Path, frames: int) -> int:
    """Gives every clip and stream `frames` frames: drawn clips have from half of that to all of it and lack hands at
    times. What is added are links to the clip's own frames, which cost as much to read. How many were added."""
    clips: dict[tuple, dict[int, Path]] = {}
    for path in sorted(path for stream in ("face", "hand_l", "hand_r") for path in (folder / stream).glob("*_f*.jpg")):
        id, number = re.fullmatch(r"(.+)_f(\d+)", path.stem).groups()
        clips.setdefault((path.parent, id, len(number)), {})[int(number)] = path
    added = 0
    for (stream, id, digits), found in clips.items():
        own, first = list(found.values()), min(1, min(found))
        for number in set(range(first, first + frames)) - found.keys():
            os.link(own[number % len(own)], stream / f"{id}_f{number:0{digits}d}.jpg")
            added += 1
    return added


class Check:
    def __init__(self, args, runner: Runner, report: Report, work: Path):
        self.args, self.run, self.report, self.work = args, runner, report, work
        self.row, self.raw, self.attempt = report.row, report.raw, report.attempt
        self.sizes, self.program = sizes(args.quick, args.dry), args.bin_dir / "slt-run"
        self.device = "cpu" if args.dry else "cuda"
        # Makes the default network small enough to try things with.
        self.small = ["--set", f"model.backbone.depth={self.sizes.depth}", "--vocab-size", 1000] if args.dry else []

    # What the parts share.

    def precision(self, dtype: str) -> list:
        """Flags for `float32`, `bfloat16` or `float16`."""
        amp = ["--precision", "amp", "--set", f"optimization.amp_dtype={dtype}"]
        return ["--precision", "fp32"] if dtype == "float32" else amp

    def judged(self, holds: bool) -> bool | None:
        """Speed and memory of tiny sizes on a CPU say nothing."""
        return None if self.args.dry else holds

    def bench(self, dtype: str, frames: int, steps: int, *more: object, limit: float = 120) -> dict:
        s = self.sizes
        found = self.run.json([self.program, "bench", CONFIG, "--json", "--device", self.device, *self.precision(dtype),
                               "--batch-size", s.batch, "--sequence-length", frames, "--image-size", s.size, "--steps", steps,
                               *self.small, *more], f"slt-run bench, {dtype}, {s.batch} x {frames}", limit)
        device, stored = str(found.get("device")), found.get("precision")
        if not self.args.dry and (not device.startswith("cuda") or stored != dtype):
            raise Failure(f"slt-run bench was to compute in {dtype} on cuda and did so in {stored} on {device}")
        return found

    def peer(self, mode: str, frames: int, steps: int, warmup: int, limit: float) -> dict:
        """PyTorch's figures; {"failed": …} or {"oom": true} where it has none."""
        s = self.sizes
        # Compiled code is kept for the next run of the same mode.
        env = {"TORCHINDUCTOR_CACHE_DIR": str(self.work / "inductor"), "TRITON_CACHE_DIR": str(self.work / "triton")}
        try:
            return self.run.json([self.args.python, PEER, "step", s.batch, frames, s.size, "--mode", mode, "--steps", steps,
                                  "--warmup", warmup, "--device", self.device, "--depth", s.depth],
                                 f"PyTorch, {mode}, {s.batch} x {frames}", limit, env=env)
        except Failure as failure:
            return {"mode": mode, "failed": str(failure)}

    def train(self, what: str, folder: Path, flags: list, limit: float = 120, until=None) -> tuple[int, list[dict]]:
        """A run's exit code and the lines of its metrics; SIGTERM, where `until` asks for it, is no failure."""
        done = self.run.call([self.program, *flags, "--device", self.device, "--work-dir", folder, "--quiet"], what, limit,
                             until=until, codes=(0, 128 + signal.SIGTERM) if until else (0,))
        where = "cuda" if done.returncode else str(json.loads((folder / "run.json").read_text()).get("device"))
        if not self.args.dry and not where.startswith("cuda"):
            raise Failure(f"{what} was to run on cuda and ran on {where}: {last_words(done)}")
        return done.returncode, metrics(folder)

    def mini(self) -> list:
        """The mini corpus, wherever it is: the experiment file's own paths fit one working directory only."""
        experiment, data = self.args.shared / "data" / "lsa_t_mini.toml", self.args.shared / "data" / "lsa_t_mini"
        if not experiment.is_file() or not data.is_dir():
            raise Failure(f"there is no {experiment}: --shared names the folder that holds data/lsa_t_mini.toml")
        return [experiment, *dataset(data)]

    def part_a(self) -> None:
        cases, env = self.args.shared / "cases", {"SLT_RUN_BINARY": str(self.program)}
        env |= {"NUMERIC_CASES": str(cases)} if any(cases.glob("*/case.json")) else {}
        env |= {} if self.args.dry else {"SLT_RUN_NEED_GPU": "1"}
        for name, filters in (("unit-tests", ["on_a_card", "engine::cuda::driver"]), ("suite-tests", ["gpu::"])):
            self.attempt(name, lambda: self.tests(name, filters, env))

    def tests(self, name: str, filters: list[str], env: dict[str, str]) -> None:
        # With --nocapture the log shows which test a limit struck, and what a test printed that passed all the same.
        command = [self.args.bin_dir / name, *filters, "--test-threads=1", "--nocapture"]
        done = self.run.call(command, name, 200 if self.args.quick else 300, env=env, codes=None)
        said = done.stdout + "\n" + done.stderr
        result = re.search(r"test result: \w+\. (\d+) passed; (\d+) failed", said)
        passed, failed = map(int, result.groups()) if result else (0, 0)
        # Faults are made on a pretended CUDA alone.
        out = re.findall(r"left out: (?!needs the pretended CUDA).*", said)
        names = re.findall(r"^    (\S+)$", said[said.rfind("\nfailures:"):], re.MULTILINE) if failed else []
        self.raw(name, {"code": done.returncode, "passed": passed, "failed": names, "left_out": out, "seconds": done.seconds})
        found = f"{passed} passed, {failed} failed, {len(out)} left out" + (f": {', '.join(names)}" if names else "")
        self.row(name, found if result else f"no result, {ended(done)}: {last_words(done, 1)}", "some, and all pass",
                 done.returncode == 0 and passed > 0 and failed == 0 and (not out or self.args.dry))

    def part_b(self) -> None:
        for seed in self.sizes.seeds:
            last: dict[str, dict] = {}
            for dtype in ("float32", "bfloat16", "float16"):
                self.attempt(f"seed {seed}, {dtype}", lambda: self.mini_run(f"seed {seed}, {dtype}", seed, dtype, last))

    def mini_run(self, name: str, seed: int, dtype: str, last: dict[str, dict]) -> None:
        flags = [*self.mini(), *self.precision(dtype), "--seed", seed]
        lines = self.raw(name, self.train(f"mini corpus, {name}", self.work / f"mini_{seed}_{dtype}", flags)[1])
        last[dtype] = lines[-1]
        loss, accuracy = lines[-1]["val_loss"], lines[-1]["val_accuracy"]
        exact = last.get("float32", {"val_loss": None})
        found = f"loss {loss if loss is None else round(loss, 4)}, accuracy {accuracy}"
        if loss is None:
            self.row(name, found, "a finite loss", False)
        elif dtype == "float32":
            self.row(name, found, "loss ≤ 0.08, accuracy 1", loss <= 0.08 and accuracy >= 1.0)
        elif exact["val_loss"] is None:
            self.row(name, found, "f32's within 0.02, which there is none of", False)
        else:
            apart = loss - exact["val_loss"]
            self.row(name, f"loss {loss:.4f} ({apart:+.4f}), accuracy {accuracy}", "f32's ± 0.02, its accuracy",
                     abs(apart) <= 0.02 and accuracy == exact["val_accuracy"])

    def part_c(self) -> None:
        for dtype in self.sizes.resumed:
            self.attempt(f"{dtype}, resumed", lambda: self.resumed(dtype))

    def resumed(self, dtype: str) -> None:
        flags = [*self.mini(), *self.precision(dtype), "--seed", 3, "--epochs", 40]
        whole, parts, again = (self.work / f"{name}_{dtype}" for name in ("whole", "parts", "again"))
        self.train(f"{dtype}, in one go", whole, flags)
        # A short run may end before the signal: earlier, then.
        for after in (12, 6, 1):
            shutil.rmtree(parts, ignore_errors=True)
            code, lines = self.train(f"{dtype}, stopped after {after} epochs", parts, flags,
                                     until=lambda: len(metrics(parts)) >= after)
            if code != 0:
                break
        else:
            raise Failure("the run was over each time before it could be stopped")
        stopped = len(lines)
        _, lines = self.train(f"{dtype}, resumed", parts, [*flags, "--resume"])
        found = self.same(whole, parts)
        self.raw(dtype, {"stopped_after": stopped, "epochs": len(lines), **found})
        same, moments = found["model_state"]["same"] and len(lines) == 40, found["optimizer_state"]["same"]
        said = f"{'the same' if same else 'others'}, stopped after epoch {stopped} of {len(lines)}"
        self.row(f"{dtype}: the model's tensors", said, "the same bits as in one go", same)
        self.row(f"{dtype}: the optimizer's tensors", "the same" if moments else "others", "the same", moments)
        if not same:
            # Is it resuming, or would any second run differ?
            self.train(f"{dtype}, in one go again", again, flags)
            found = self.same(whole, again)["model_state"]
            self.row(f"{dtype}: a second run in one go", "the same" if found["same"] else f"others, by up to {found.get('most')}")

    def same(self, one: Path, two: Path) -> dict:
        return self.run.json([self.args.python, PEER, "same", one / "last.pt", two / "last.pt"], "comparing checkpoints", 90)

    def part_d(self) -> None:
        s, clips = self.sizes, self.work / "clips"
        # A quarter of the clips is for validation.
        self.run.call([self.program, "demo", clips, "--clips", s.clips * 4 // 3, "--frames", s.clip_frames, "--size", s.size,
                       "--signs", 2, "--data-only", "--quiet"], "drawing clips", 150)
        linked = fill(clips, s.clip_frames)
        lines = self.raw("metrics", self.train("feeding", self.work / "feeding", [
            CONFIG, *dataset(clips), "--num-workers", 16, "--batch-size", 4, "--sequence-length", s.clip_frames, "--image-size",
            s.size, "--epochs", s.clip_epochs, "--lr", 1e-4, "--precision", "amp", *self.small], 240)[1])
        images = 3 * s.clip_frames * (len((clips / "index" / "train.csv").read_text().splitlines()) - 1)

        def waited(lines: list[dict]) -> tuple[float, float]:
            return tuple(sum(line[key] for line in lines) for key in ("data_wait_seconds", "seconds"))

        wait, whole = waited(lines)
        self.row(f"{len(lines)} epochs, 16 threads: wait for data", f"{percent(wait / whole)} of {seconds(whole)}", "≤ 2 %",
                 self.judged(wait <= 0.02 * whole))
        training = sum(images / line["images_per_second"] for line in lines)
        self.row("the same, of the time in training alone", percent(wait / training))
        if lines[1:]:
            wait, whole = waited(lines[1:])
            self.row("from the second epoch on", f"{percent(wait / whole)} of {seconds(whole)}")
        self.row("images in training", f"{rate(median(line['images_per_second'] for line in lines))}, {images} an epoch "
                 f"({linked} of the frames links to others)")

    def part_e(self) -> None:
        s, runs = self.sizes, self.raw("runs", [])
        for _ in range(s.rounds):
            self.turns(runs, ["eager-f16", "eager-bf16"], 100)
        self.ours(runs, "bfloat16", "float16")
        # What needs no PyTorch, and little time, before what may take minutes.
        self.attempt("documented defaults", self.defaults)
        self.attempt("memory by frames", self.curve)
        if not self.args.quick:
            self.ours(runs, "float32")
            self.note(runs, "eager-f32", self.peer("eager-f32", s.frames, s.steps, s.warmup, 100))
        self.turns(runs, ["compile-f16", "compile-bf16"], 240)
        self.ours(runs, "bfloat16", "float16")
        self.compare(runs)

    def turns(self, runs: list[dict], modes: list[str], limit: float) -> None:
        s = self.sizes
        for mode in modes:
            self.ours(runs, "float16" if mode.endswith("-f16") else "bfloat16")
            left = self.run.left() - RESERVE
            self.note(runs, mode, self.peer(mode, s.frames, s.steps, s.warmup, min(limit, left)) if left > 20
                      else {"mode": mode, "failed": "no time was left"})

    def ours(self, runs: list[dict], *dtypes: str) -> None:
        for dtype in dtypes:
            try:
                self.note(runs, dtype, self.bench(dtype, self.sizes.frames, self.sizes.steps))
            except Failure as failure:
                self.note(runs, dtype, {"failed": str(failure)})

    def note(self, runs: list[dict], who: str, found: dict) -> None:
        runs.append({"who": who, **found})
        self.report.write()

    def compare(self, runs: list[dict]) -> None:
        """A row for each kind, by the median over its runs, then the targets."""
        s, speed = self.sizes, {}
        for who in dict.fromkeys(run["who"] for run in runs):
            ours, own = "-" not in who, [run for run in runs if run["who"] == who]
            name = f"{s.batch} x {s.frames} x {s.size}, {'slt-run' if ours else 'PyTorch'} {who}"
            good = [run for run in own if "images_per_s" in run]
            figures = [run["images_per_s"] for run in good]
            if not good:
                why = "out of memory" if any(run.get("oom") for run in own) else own[-1].get("failed", "no figure")
                # PyTorch may fail; slt-run may not.
                self.row(name, why, "measured" if ours else "", False if ours else None)
                continue
            speed[who] = median(figures)
            spread = f" ({rate(min(figures))} to {rate(max(figures))} in {len(figures)} runs)" if len(figures) > 1 else ""
            peak = max(run.get("peak_gpu_gib") or 0 for run in good)
            self.row(name, f"{rate(speed[who])}{spread}, {seconds(median(run['step_s_median'] for run in good))} a step"
                     + (f", {gb(peak)}" if peak else ""))
        self.raw("images_per_s", speed)
        peers = {who: value for who, value in speed.items() if "-" in who}
        best = max(peers, key=peers.get) if peers else "of which there is none"
        for ours, name, theirs, least in (("bfloat16", "eager-f16", "eager-f16", 1.3), ("float16", "eager-f16", "eager-f16", None),
                                          ("bfloat16", f"'s best, {best}", best, 1.0)):
            ratio = speed[ours] / peers[theirs] if ours in speed and theirs in peers else None
            holds = None if least is None else False if ratio is None else self.judged(ratio >= least)
            self.row(f"slt-run {ours} to PyTorch{name if name[0] == chr(39) else f' {name}'}",
                     "not measured" if ratio is None else times(ratio), f"≥ {least} ×" if least else "", holds)
        lacking = [mode for mode in ("eager-f16", "eager-bf16", "compile-f16", "compile-bf16") if mode not in peers]
        if lacking:
            self.row("PyTorch's best is without", ", ".join(lacking))

    def defaults(self) -> None:
        s = self.sizes
        name = f"documented defaults, {s.batch} x {s.long} x {s.size}"
        ours = self.raw("defaults", self.bench("bfloat16", s.long, s.long_steps, limit=200))
        self.row(f"{name}: images", f"{rate(ours['images_per_s'])}, {seconds(ours['step_s_median'])} a step, chunks of "
                 f"{ours.get('frames_per_chunk') or 'all'} frames")
        peak = ours.get("peak_gpu_gib")
        self.row(f"{name}: peak memory", gb(peak), "≤ 40 GB", self.judged(peak is not None and peak * 2**30 <= 40e9))
        theirs = self.raw("defaults_peer", self.peer("eager-f16", s.long, max(2, s.long_steps // 2), 2, 150))
        peak = gb(theirs.get("peak_gpu_gib"))
        found = f"out of memory beyond {peak}" if theirs.get("oom") else theirs.get("failed", "?")
        if "images_per_s" in theirs:
            taken = gb(theirs["peak_gpu_reserved_gib"])
            found = f"{rate(theirs['images_per_s'])}, peak {peak} of tensors, {taken} taken"
        self.row(f"{name}: PyTorch eager-f16", found)

    def curve(self) -> None:
        """With a fixed chunk, only the batch's bytes and the head grow with the frames."""
        s = self.sizes
        found = self.raw("curve", {t: self.bench("bfloat16", t, 1 if self.args.dry else 3, "--set",
                                                 f"optimization.frames_per_chunk={s.chunk}") for t in s.curve})
        self.row(f"chunks of {s.chunk} frames, {s.batch} x T, T = {', '.join(map(str, s.curve))}: peak memory",
                 " / ".join(gb(run.get("peak_gpu_gib")) for run in found.values()))
        self.row("the same: images", " / ".join(rate(run["images_per_s"]) for run in found.values()))

    def part_f(self) -> None:
        s = self.sizes
        rates = self.raw("rates", self.run.json([self.args.python, PEER, "rates", "--device", self.device, "--size", s.product,
                                                 "--copy-gib", s.copy_gib], "the card's rates", 120))
        for name in ("bf16", "f16", "f32"):
            self.row(f"a product of {s.product}³, {name}", flops(rates[f"{name}_flops"]))
        self.row("a copy, bytes read and written", f"{rates['copy_bytes_per_s'] / 1e12:.2f} TB/s")
        own = [run for run in self.report.figure("e", "runs") or [] if run["who"] == "bfloat16" and "step_s_median" in run]
        own = own or [self.bench("bfloat16", s.frames, s.steps)]
        self.floor(s.frames, median(run["step_s_median"] for run in own), own[0], rates)
        whole = self.report.figure("e", "defaults")
        if whole:
            self.floor(s.long, whole["step_s_median"], whole, rates)

    def floor(self, frames: int, step: float, run: dict, rates: dict) -> None:
        s, bandwidth = self.sizes, rates["copy_bytes_per_s"]
        name = f"{s.batch} x {frames} x {s.size}"
        floor = gpu_floor.floor(s.batch, frames, s.size, s.depth, run.get("parameters") or 101_000_000, rates["bf16_flops"],
                                bandwidth)
        self.raw(f"floor, {name}", {**floor, "step_s": step})
        moved, together, in_turn = sum(floor["bytes"].values()), floor["overlapped_s"], floor["in_turn_s"]
        share, written = (percent(floor[key] / step / rates["bf16_flops"]) for key in ("flops", "flops_as_written"))
        for what, found in {
            f"{floor['flops'] / 1e12:.3g} TFLOP at the bf16 rate": seconds(floor["matrix_s"]),
            f"{moved / 1e9:.3g} GB at the copy bandwidth": seconds(floor["memory_s"]),
            "floor, one hidden by the other": seconds(together), "floor, one after the other": seconds(in_turn),
            "slt-run's step": f"{seconds(step)}, {step / together:.2f} and {step / in_turn:.2f} times the floors",
            "reached of the bf16 rate": f"{share} ({written} counting the network as it is written)",
            "reached of the copy bandwidth": percent(moved / step / bandwidth),
        }.items():
            self.row(f"{name}: {what}", found)


def python_with_torch(asked: str | None) -> str | None:
    """An interpreter that has torch, as a path that keeps its virtual environment."""
    test = "import importlib.util as u, sys; sys.exit(u.find_spec('torch') is None)"
    for name in [asked] if asked else [sys.executable, "python3", "python"]:
        path = shutil.which(name or "")
        if path and subprocess.run([path, "-c", test], capture_output=True, check=False).returncode == 0:
            return os.path.abspath(path)
    return None


def arguments() -> argparse.Namespace:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("bin_dir", metavar="BIN_DIR", type=Path, help="the folder that gpu_pack.sh made")
    ap.add_argument("--shared", metavar="DIR", type=Path, help="the folder with data/lsa_t_mini.toml and cases "
                    "[../shared or shared, from the repository's root]")
    ap.add_argument("--out", metavar="DIR", type=Path, default=ROOT / "target" / "gpu_check",
                    help="where the results go [target/gpu_check]")
    ap.add_argument("--python", metavar="PY", help="an interpreter that has torch [the first that has it: python3, python]")
    ap.add_argument("--work", metavar="DIR", type=Path, help="for checkpoints and clips, 5 GB [the system's temporary folder]")
    ap.add_argument("--quick", action="store_true", help="fewer runs: at most 10 minutes in all, else 20")
    ap.add_argument("--only", metavar="PARTS", default=",".join(PARTS), help="parts to run, such as a,b,e [all]")
    ap.add_argument("--limit", metavar="SECONDS", type=float, help="stop in good order after so long [575 with --quick, or 1200]")
    ap.add_argument("--dry", action="store_true", help="on the CPU, in tiny sizes: are the scripts themselves in order?")
    args = ap.parse_args()
    args.parts = [name for name in PARTS if name in args.only.split(",")]
    unknown = sorted(set(args.only.split(",")) - set(PARTS))
    if unknown:
        ap.error(f"no part {', '.join(map(repr, unknown))}; there are {', '.join(PARTS)}")
    shared = args.shared or next(filter(Path.is_dir, (ROOT.parent / "shared", ROOT / "shared")), ROOT.parent / "shared")
    args.bin_dir, args.out, args.shared = args.bin_dir.absolute(), args.out.absolute(), shared.absolute()
    if not (args.bin_dir / "slt-run").is_file():
        ap.error(f"{args.bin_dir} holds no slt-run: scripts/gpu_pack.sh makes such a folder")
    asked, args.python = args.python, python_with_torch(args.python)
    if args.python is None:
        ap.error(f"{asked} has no torch" if asked else "no Python here has torch: --python names one that has")
    return args


def measure(args, work: Path) -> bool:
    """All parts that were asked for; whether their targets hold."""
    for name in ("slt-run", "unit-tests", "suite-tests"):
        # Copies between machines lose the permission at times.
        if (args.bin_dir / name).is_file() and not os.access(args.bin_dir / name, os.X_OK):
            (args.bin_dir / name).chmod(0o755)
    try:
        pack = dict(json.loads((args.bin_dir / "pack.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        pack = {}
    runner = Runner(ROOT, args.out / "gpu_check.log", args.limit or sizes(args.quick, args.dry).limit)
    about = machine(runner, args.bin_dir / "slt-run", args.python, PEER, pack, args.dry)
    about.update(quick=args.quick, measured=datetime.datetime.now().astimezone().isoformat(timespec="seconds"))
    report = Report(args.out, about, PARTS)
    for key in ("gpu", "driver", "cuda_libraries", "torch", "commit"):
        say(f"{key.replace('_', ' ')}: {about.get(key)}")
    check = Check(args, runner, report, work)
    try:
        for name in args.parts:
            report.run(name, getattr(check, f"part_{name}"))
    finally:
        print(report.text(), end="", flush=True)
    return report.holds(args.parts)


def main() -> int:
    args = arguments()

    def stop(number: int, _frame) -> None:
        raise KeyboardInterrupt(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="gpu_check_", dir=args.work) as work:
            return 0 if measure(args, Path(work)) else 1
    except KeyboardInterrupt as stopped:
        say(f"gpu_check: stopped by {stopped}; what was measured is in {args.out}")
    except (Failure, OSError) as failure:
        say(f"gpu_check: {failure}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
