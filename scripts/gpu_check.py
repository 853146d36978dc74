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
import sys
import tempfile
from pathlib import Path
from statistics import median

import gpu_floor
from bench_vs_torch import ROOT, SCRIPTS, rate, seconds, times
from gpu_report import Report, say
from gpu_run import Failure, Runner
from gpu_setup import dataset, fill, machine, metrics, pack_of, python_with_torch

CONFIG = ROOT / "configs" / "multistream_v9.toml"
PEER = SCRIPTS / "torch_gpu_peer.py"
PARTS = {"a": "tests on the card", "b": "mini corpus", "c": "stopped and resumed", "d": "feeding",
         "e": "a training step, against PyTorch", "f": "the card's rates and the floor"}
# Time that part e's torch.compile leaves for the rates, which need less.
RESERVE = 45.0
GB_A_GIB = 2**30 / 1e9


class Stopped(BaseException):
    """SIGTERM or SIGINT came."""


class Sizes:
    """How much is done: in full, for --quick, and for --dry."""

    def __init__(self, quick: bool, dry: bool):
        self.quick = quick
        self.limit = 575 if quick else 1200
        self.seeds = [0] if quick else [0, 1, 2]
        self.resumed = ["bfloat16"] if quick else ["bfloat16", "float16"]
        self.batch, self.frames, self.size, self.depth = 4, 16, 224, 12
        self.steps, self.warmup = (30, 10) if quick else (100, 20)
        self.long, self.long_steps, self.chunk = 128, (4 if quick else 10), 64
        self.curve = [32, 128] if quick else [16, 32, 64, 128]
        self.rounds = 1 if quick else 2
        self.clips, self.clip_frames, self.clip_epochs = 64, 128, (3 if quick else 6)
        self.product, self.copy_gib = 8192, 4.0
        if dry:
            self.seeds, self.resumed = [0], ["bfloat16"]
            self.batch, self.frames, self.size, self.depth, self.steps, self.warmup = 1, 2, 32, 1, 2, 1
            self.long, self.long_steps, self.chunk, self.curve, self.rounds = 4, 1, 2, [2, 4], 1
            self.clips, self.clip_frames, self.clip_epochs = 8, 8, 2
            self.product, self.copy_gib = 256, 0.02


def flops(number: float) -> str:
    return f"{number / 1e12:,.{0 if number >= 1e13 else 3}f} TFLOP/s"


def percent(share: float) -> str:
    return f"{100 * share:.{0 if share >= 0.1 else 2}f} %"


def gb(found_gib: float | None) -> str:
    return "not said" if found_gib is None else f"{found_gib * GB_A_GIB:.1f} GB"


class Check:
    def __init__(self, args, runner: Runner, report: Report, work: Path):
        self.args, self.run, self.report, self.work = args, runner, report, work
        self.sizes = Sizes(args.quick, args.dry)
        self.program = args.bin_dir / "slt-run"
        self.device = "cpu" if args.dry else "cuda"
        self.knows_dtype = True

    # What the parts share.

    def precision(self, dtype: str) -> list:
        """Flags for `float32`, `bfloat16` or `float16`."""
        if dtype == "float32":
            return ["--precision", "fp32"]
        return ["--precision", "amp", *(["--set", f"optimization.amp_dtype={dtype}"] if self.knows_dtype else [])]

    def judged(self, holds: bool) -> bool | None:
        """Speed and memory of tiny sizes on a CPU say nothing."""
        return None if self.args.dry else holds

    def small(self) -> list:
        """Makes the default network small enough to try things with."""
        return ["--set", f"model.backbone.depth={self.sizes.depth}", "--vocab-size", 1000] if self.args.dry else []

    def bench(self, dtype: str, frames: int, steps: int, *more: object, limit: float = 120) -> dict:
        s = self.sizes
        found = self.run.json([self.program, "bench", CONFIG, "--json", "--device", self.device, *self.precision(dtype),
                               "--batch-size", s.batch, "--sequence-length", frames, "--image-size", s.size, "--steps", steps,
                               *self.small(), *more], f"slt-run bench, {dtype}, {s.batch} x {frames}", limit)
        if not self.args.dry:
            where = (found.get("device"), found.get("precision"))
            if not str(where[0]).startswith("cuda") or where[1] != dtype:
                raise Failure(f"slt-run bench was to compute in {dtype} on cuda and did so in {where[1]} on {where[0]}")
        return found

    def peer(self, mode: str, frames: int, steps: int, warmup: int, limit: float) -> dict:
        """PyTorch's figures; {"failed": …} or {"oom": true} where it has none."""
        s = self.sizes
        command = [self.args.python, PEER, "step", s.batch, frames, s.size, "--mode", mode, "--steps", steps,
                   "--warmup", warmup, "--device", self.device, "--depth", s.depth]
        try:
            # Compiled code is kept for the next run of the same mode.
            env = {"TORCHINDUCTOR_CACHE_DIR": str(self.work / "inductor"), "TRITON_CACHE_DIR": str(self.work / "triton")}
            return self.run.json(command, f"PyTorch, {mode}, {s.batch} x {frames}", limit, env=env)
        except Failure as failure:
            return {"mode": mode, "failed": str(failure)}

    def train(self, what: str, folder: Path, flags: list, limit: float = 120, until=None) -> tuple[int, list[dict]]:
        """A run's exit code and the lines of its metrics; SIGTERM, where `until` asks for it, is no failure."""
        done = self.run.call([self.program, *flags, "--device", self.device, "--work-dir", folder, "--quiet"], what, limit,
                             until=until)
        if done.code != 0 and not (until and done.code == 128 + signal.SIGTERM):
            raise Failure(f"{what} {done.end()}: {done.last_words()}")
        where = json.loads((folder / "run.json").read_text()).get("device") if done.code == 0 else None
        if done.code == 0 and not self.args.dry and not str(where).startswith("cuda"):
            raise Failure(f"{what} was to run on cuda and ran on {where}: {done.last_words()}")
        return done.code, metrics(folder)

    def mini(self) -> list:
        """The mini corpus, wherever it is: the experiment file's own paths fit one working directory only."""
        experiment, data = self.args.shared / "data" / "lsa_t_mini.toml", self.args.shared / "data" / "lsa_t_mini"
        if not experiment.is_file() or not data.is_dir():
            raise Failure(f"there is no {experiment}: --shared names the folder that holds data/lsa_t_mini.toml")
        return [experiment, *dataset(data)]

    # a

    def part_a(self) -> None:
        cases = self.args.shared / "cases"
        env = {"SLT_RUN_BINARY": str(self.program)}
        if any(cases.glob("*/case.json")):
            env["NUMERIC_CASES"] = str(cases)
        if not self.args.dry:
            env["SLT_RUN_NEED_GPU"] = "1"
        self.tests("unit-tests", ["on_a_card", "engine::cuda::driver"], env)
        self.tests("suite-tests", ["gpu::"], env)

    def tests(self, name: str, filters: list[str], env: dict[str, str]) -> None:
        # With --nocapture the log shows which test a limit struck, and what a test printed that passed all the same.
        command = [self.args.bin_dir / name, *filters, "--test-threads=1", "--nocapture"]
        try:
            done = self.run.call(command, name, 200 if self.sizes.quick else 300, env=env)
        except Failure as failure:
            self.report.failed(name, failure)
            return
        said = done.stdout + "\n" + done.stderr
        result = re.search(r"test result: \w+\. (\d+) passed; (\d+) failed", said)
        passed, failed = map(int, result.groups()) if result else (0, 0)
        # Faults are made on a pretended CUDA alone.
        out = re.findall(r"left out: (?!needs the pretended CUDA).*", said)
        names = re.findall(r"^    (\S+)$", said[said.rfind("\nfailures:"):], re.MULTILINE) if failed else []
        self.report.raw(name, {"code": done.code, "passed": passed, "failed": names, "left_out": out, "seconds": done.seconds})
        found = f"no result, {done.end()}: {done.last_words(1)}"
        if result:
            found = f"{passed} passed, {failed} failed, {len(out)} left out" + (f": {', '.join(names)}" if names else "")
        holds = done.code == 0 and passed > 0 and failed == 0 and (not out or self.args.dry)
        self.report.row(name, found, "some, and all pass", holds)

    # b

    def part_b(self) -> None:
        flags = self.mini()
        for seed in self.sizes.seeds:
            last: dict[str, dict] = {}
            for dtype in ("float32", "bfloat16", "float16"):
                name = f"seed {seed}, {dtype}"
                try:
                    _, lines = self.train(f"mini corpus, {name}", self.work / f"mini_{seed}_{dtype}",
                                          [*flags, *self.precision(dtype), "--seed", seed])
                except Failure as failure:
                    self.report.failed(name, failure)
                    continue
                self.report.raw(name, lines)
                last[dtype] = lines[-1]
                self.mini_row(name, dtype, last)

    def mini_row(self, name: str, dtype: str, last: dict[str, dict]) -> None:
        loss, accuracy = last[dtype]["val_loss"], last[dtype]["val_accuracy"]
        found = f"loss {loss if loss is None else round(loss, 4)}, accuracy {accuracy}"
        if loss is None:
            self.report.row(name, found, "a finite loss", False)
        elif dtype == "float32":
            self.report.row(name, found, "loss ≤ 0.08, accuracy 1", loss <= 0.08 and accuracy >= 1.0)
        elif "float32" not in last or last["float32"]["val_loss"] is None:
            self.report.row(name, found, "f32's within 0.02, which there is none of", False)
        else:
            apart = loss - last["float32"]["val_loss"]
            holds = abs(apart) <= 0.02 and accuracy == last["float32"]["val_accuracy"]
            self.report.row(name, f"loss {loss:.4f} ({apart:+.4f}), accuracy {accuracy}", "f32's ± 0.02, its accuracy", holds)

    # c

    def part_c(self) -> None:
        for dtype in self.sizes.resumed:
            try:
                self.resumed(dtype, [*self.mini(), *self.precision(dtype), "--seed", 3, "--epochs", 40])
            except Failure as failure:
                self.report.failed(f"{dtype}, resumed", failure)

    def resumed(self, dtype: str, flags: list) -> None:
        whole, parts = self.work / f"whole_{dtype}", self.work / f"parts_{dtype}"
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
        self.report.raw(dtype, {"stopped_after": stopped, "epochs": len(lines), **found})
        same = found["model_state"]["same"] and len(lines) == 40
        self.report.row(f"{dtype}: the model's tensors", f"{'the same' if same else 'others'}, stopped after epoch {stopped} of "
                        f"{len(lines)}", "the same bits as in one go", same)
        self.report.row(f"{dtype}: the optimizer's tensors", "the same" if found["optimizer_state"]["same"] else "others",
                        "the same", found["optimizer_state"]["same"])
        if not same:
            # Is it resuming, or would any second run differ?
            again = self.work / f"again_{dtype}"
            self.train(f"{dtype}, in one go again", again, flags)
            found = self.same(whole, again)["model_state"]
            self.report.row(f"{dtype}: a second run in one go",
                            "the same" if found["same"] else f"others, by up to {found.get('most')}")

    def same(self, one: Path, two: Path) -> dict:
        return self.run.json([self.args.python, PEER, "same", one / "last.pt", two / "last.pt"], "comparing checkpoints", 90)

    # d

    def part_d(self) -> None:
        s, clips = self.sizes, self.work / "clips"
        # A quarter of the clips is for validation.
        self.run.ok([self.program, "demo", clips, "--clips", s.clips * 4 // 3, "--frames", s.clip_frames, "--size", s.size,
                     "--signs", 2, "--data-only", "--quiet"], "drawing clips", 150)
        linked = fill(clips, s.clip_frames)
        _, lines = self.train("feeding", self.work / "feeding", [
            CONFIG, *dataset(clips), "--num-workers", 16, "--batch-size", 4, "--sequence-length", s.clip_frames, "--image-size",
            s.size, "--epochs", s.clip_epochs, "--lr", 1e-4, "--precision", "amp", *self.small()], 240)
        self.report.raw("metrics", lines)
        waited, whole = (sum(line[key] for line in lines) for key in ("data_wait_seconds", "seconds"))
        self.report.row(f"{len(lines)} epochs, 16 threads: wait for data", f"{percent(waited / whole)} of {seconds(whole)}",
                        "≤ 2 %", self.judged(waited <= 0.02 * whole))
        train = len((clips / "index" / "train.csv").read_text().splitlines()) - 1
        images = 3 * s.clip_frames * train
        training = sum(images / line["images_per_second"] for line in lines)
        self.report.row("the same, of the time in training alone", percent(waited / training))
        after = [(line["data_wait_seconds"], line["seconds"]) for line in lines[1:]]
        if after:
            waited, whole = map(sum, zip(*after))
            self.report.row("from the second epoch on", f"{percent(waited / whole)} of {seconds(whole)}")
        self.report.row("images in training", f"{rate(median([line['images_per_second'] for line in lines]))}, "
                        f"{images} an epoch ({linked} of the frames links to others)")

    # e

    def part_e(self) -> None:
        runs: list[dict] = []
        self.report.raw("runs", runs)
        compiled = ["compile-f16", "compile-bf16"]
        for _ in range(self.sizes.rounds):
            self.turns(runs, ["eager-f16", "eager-bf16"], 100)
        self.ours(runs, "bfloat16")
        self.ours(runs, "float16")
        # What needs no PyTorch, and little time, before what may take minutes.
        self.guarded("documented defaults", self.defaults)
        self.guarded("memory by frames", self.curve)
        if not self.sizes.quick:
            self.ours(runs, "float32")
            self.note_peer(runs, self.peer("eager-f32", self.sizes.frames, self.sizes.steps, self.sizes.warmup, 100))
        self.turns(runs, compiled, 240)
        self.ours(runs, "bfloat16")
        self.ours(runs, "float16")
        self.compare(runs)

    def guarded(self, name: str, work) -> None:
        try:
            work()
        except Failure as failure:
            self.report.failed(name, failure)

    def turns(self, runs: list[dict], modes: list[str], limit: float) -> None:
        for mode in modes:
            self.ours(runs, "float16" if mode.endswith("-f16") else "bfloat16")
            left = self.run.left() - RESERVE
            found = {"mode": mode, "failed": "no time was left"}
            if left > 20:
                s = self.sizes
                found = self.peer(mode, s.frames, s.steps, s.warmup, min(limit, left))
            self.note_peer(runs, found)

    def ours(self, runs: list[dict], dtype: str) -> None:
        try:
            found = self.bench(dtype, self.sizes.frames, self.sizes.steps)
        except Failure as failure:
            found = {"failed": str(failure)}
        runs.append({"who": dtype, **found})
        self.report.write()

    def note_peer(self, runs: list[dict], found: dict) -> None:
        runs.append({"who": found.get("mode"), **found})
        self.report.write()

    def compare(self, runs: list[dict]) -> None:
        """A row for each kind, by the median over its runs, then the targets."""
        s = self.sizes
        speed: dict[str, float] = {}
        for who in dict.fromkeys(run["who"] for run in runs):
            ours = "-" not in who
            name = f"{s.batch} x {s.frames} x {s.size}, {'slt-run' if ours else 'PyTorch'} {who}"
            own = [run for run in runs if run["who"] == who]
            good = [run for run in own if "images_per_s" in run]
            if not good:
                why = "out of memory" if any(run.get("oom") for run in own) else own[-1].get("failed", "no figure")
                # PyTorch may fail; slt-run may not.
                self.report.row(name, why, "measured" if ours else "", False if ours else None)
                continue
            figures = [run["images_per_s"] for run in good]
            speed[who] = median(figures)
            spread = f" ({rate(min(figures))} to {rate(max(figures))} in {len(figures)} runs)" if len(figures) > 1 else ""
            peak = max((run.get("peak_gpu_gib") or 0 for run in good), default=0)
            self.report.row(name, f"{rate(speed[who])}{spread}, {seconds(median([run['step_s_median'] for run in good]))} a step"
                            + (f", {gb(peak)}" if peak else ""))
        self.report.raw("images_per_s", speed)
        peers = {who: value for who, value in speed.items() if "-" in who}
        self.against("slt-run bfloat16 to PyTorch eager-f16", speed.get("bfloat16"), peers.get("eager-f16"), 1.3)
        self.report.row("slt-run float16 to PyTorch eager-f16", times(speed["float16"] / peers["eager-f16"])
                        if "float16" in speed and "eager-f16" in peers else "not measured")
        best = max(peers, key=peers.get) if peers else "of which there is none"
        self.against(f"slt-run bfloat16 to PyTorch's best, {best}", speed.get("bfloat16"), peers.get(best), 1.0)
        lacking = [mode for mode in ("eager-f16", "eager-bf16", "compile-f16", "compile-bf16") if mode not in peers]
        if lacking:
            self.report.row("PyTorch's best is without", ", ".join(lacking))

    def against(self, name: str, ours: float | None, theirs: float | None, least: float) -> None:
        target = f"≥ {least} ×"
        if ours is None or theirs is None:
            self.report.row(name, "not measured", target, False)
        else:
            self.report.row(name, times(ours / theirs), target, self.judged(ours / theirs >= least))

    def defaults(self) -> None:
        s = self.sizes
        name = f"documented defaults, {s.batch} x {s.long} x {s.size}"
        ours = self.bench("bfloat16", s.long, s.long_steps, limit=200)
        self.report.raw("defaults", ours)
        chunk = ours.get("frames_per_chunk") or "all"
        self.report.row(f"{name}: images", f"{rate(ours['images_per_s'])}, {seconds(ours['step_s_median'])} a step, chunks of "
                        f"{chunk} frames")
        peak = ours.get("peak_gpu_gib")
        self.report.row(f"{name}: peak memory", gb(peak), "≤ 40 GB", self.judged(peak is not None and peak * GB_A_GIB <= 40))
        theirs = self.peer("eager-f16", s.long, max(2, s.long_steps // 2), 2, 150)
        self.report.raw("defaults_peer", theirs)
        if "images_per_s" in theirs:
            found = f"{rate(theirs['images_per_s'])}, peak {gb(theirs['peak_gpu_gib'])} of tensors, " \
                    f"{gb(theirs['peak_gpu_reserved_gib'])} taken"
        else:
            found = f"out of memory beyond {gb(theirs.get('peak_gpu_gib'))}" if theirs.get("oom") else theirs.get("failed", "?")
        self.report.row(f"{name}: PyTorch eager-f16", found)

    def curve(self) -> None:
        """With a fixed chunk, only the batch's bytes and the head grow with the frames."""
        s = self.sizes
        found = {t: self.bench("bfloat16", t, 3 if not self.args.dry else 1, "--set", f"optimization.frames_per_chunk={s.chunk}")
                 for t in s.curve}
        self.report.raw("curve", found)
        self.report.row(f"chunks of {s.chunk} frames, {s.batch} x T, T = {', '.join(map(str, s.curve))}: peak memory",
                        " / ".join(gb(run.get("peak_gpu_gib")) for run in found.values()))
        self.report.row("the same: images", " / ".join(rate(run["images_per_s"]) for run in found.values()))

    # f

    def part_f(self) -> None:
        s = self.sizes
        rates = self.run.json([self.args.python, PEER, "rates", "--device", self.device, "--size", s.product, "--copy-gib",
                               s.copy_gib], "the card's rates", 120)
        self.report.raw("rates", rates)
        for name in ("bf16", "f16", "f32"):
            self.report.row(f"a product of {s.product}³, {name}", flops(rates[f"{name}_flops"]))
        self.report.row("a copy, bytes read and written", f"{rates['copy_bytes_per_s'] / 1e12:.2f} TB/s")
        runs = self.report.figure("e", "runs") or []
        short = next((run for run in runs if run["who"] == "bfloat16" and "step_s_median" in run), None)
        if short is None:
            short = self.bench("bfloat16", s.frames, s.steps)
        own = [run["step_s_median"] for run in runs if run["who"] == "bfloat16" and "step_s_median" in run]
        self.floor(s.frames, median(own) if own else short["step_s_median"], short, rates)
        whole = self.report.figure("e", "defaults")
        if whole:
            self.floor(s.long, whole["step_s_median"], whole, rates)

    def floor(self, frames: int, step: float, run: dict, rates: dict) -> None:
        s = self.sizes
        name = f"{s.batch} x {frames} x {s.size}"
        floor = gpu_floor.floor(s.batch, frames, s.size, s.depth, run.get("parameters") or 101_000_000, rates["bf16_flops"],
                                rates["copy_bytes_per_s"])
        self.report.raw(f"floor, {name}", {**floor, "step_s": step})
        moved = sum(floor["bytes"].values())
        self.report.row(f"{name}: {floor['flops'] / 1e12:.3g} TFLOP at the bf16 rate", seconds(floor["matrix_s"]))
        self.report.row(f"{name}: {moved / 1e9:.3g} GB at the copy bandwidth", seconds(floor["memory_s"]))
        self.report.row(f"{name}: floor, one hidden by the other", seconds(floor["overlapped_s"]))
        self.report.row(f"{name}: floor, one after the other", seconds(floor["in_turn_s"]))
        self.report.row(f"{name}: slt-run's step", f"{seconds(step)}, {step / floor['overlapped_s']:.2f} and "
                        f"{step / floor['in_turn_s']:.2f} times the floors")
        share, written = (floor[key] / step / rates["bf16_flops"] for key in ("flops", "flops_as_written"))
        self.report.row(f"{name}: reached of the bf16 rate", f"{percent(share)} ({percent(written)} counting the network as "
                        "it is written)")
        self.report.row(f"{name}: reached of the copy bandwidth", percent(moved / step / rates["copy_bytes_per_s"]))


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
    ap.add_argument("--only", metavar="PARTS", help="parts to run, such as a,b,e [all]")
    ap.add_argument("--limit", metavar="SECONDS", type=float, help="stop in good order after so long [575 with --quick, or 1200]")
    ap.add_argument("--dry", action="store_true", help="on the CPU, in tiny sizes: are the scripts themselves in order?")
    args = ap.parse_args()
    args.parts = list(PARTS) if args.only is None else [name for name in PARTS if name in args.only.split(",")]
    unknown = sorted(set((args.only or "a").split(",")) - set(PARTS))
    if unknown:
        ap.error(f"no part {', '.join(map(repr, unknown))}; there are {', '.join(PARTS)}")
    args.bin_dir, args.out = args.bin_dir.absolute(), args.out.absolute()
    if not (args.bin_dir / "slt-run").is_file():
        ap.error(f"{args.bin_dir} holds no slt-run: scripts/gpu_pack.sh makes such a folder")
    if args.shared is None:
        args.shared = next((path for path in (ROOT.parent / "shared", ROOT / "shared") if path.is_dir()), ROOT.parent / "shared")
    args.shared = args.shared.absolute()
    asked, args.python = args.python, python_with_torch(args.python)
    if args.python is None:
        ap.error(f"{asked} has no torch" if asked else "no Python here has torch: --python names one that has")
    args.pack = pack_of(args.bin_dir)
    return args


def executable(folder: Path) -> None:
    """Copies between machines lose the permission at times."""
    for name in ("slt-run", "unit-tests", "suite-tests"):
        if (folder / name).is_file() and not os.access(folder / name, os.X_OK):
            (folder / name).chmod(0o755)


def measure(args, work: Path) -> bool:
    """All parts that were asked for; whether their targets hold."""
    runner = Runner(ROOT, args.out / "gpu_check.log", args.limit or Sizes(args.quick, args.dry).limit)
    about = machine(runner, args.bin_dir / "slt-run", args.python, PEER, args.pack, args.dry)
    about.update(quick=args.quick, measured=datetime.datetime.now().astimezone().isoformat(timespec="seconds"))
    report = Report(args.out, about, PARTS)
    check = Check(args, runner, report, work)
    for key in ("gpu", "driver", "cuda_libraries", "torch", "commit"):
        say(f"{key.replace('_', ' ')}: {about.get(key)}")
    if args.dry:
        check.knows_dtype = "amp_dtype" in runner.ok([check.program, "config", CONFIG], "slt-run config", 60).stdout
    try:
        for name in args.parts:
            report.start(name)
            try:
                getattr(check, f"part_{name}")()
            except Failure as failure:
                report.failed(PARTS[name], failure)
            except (OSError, KeyError, TypeError, ValueError, IndexError, AttributeError, ZeroDivisionError) as error:
                # A program that says other things than it should spoils its own part only.
                report.failed(PARTS[name], f"{type(error).__name__}: {error}")
            report.finish()
    finally:
        print(report.text(), end="", flush=True)
    return report.holds(args.parts)


def main() -> int:
    args = arguments()

    def stop(number: int, _frame) -> None:
        raise Stopped(signal.Signals(number).name)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, stop)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        executable(args.bin_dir)
        with tempfile.TemporaryDirectory(prefix="gpu_check_", dir=args.work) as work:
            return 0 if measure(args, Path(work)) else 1
    except Stopped as stopped:
        say(f"gpu_check: stopped by {stopped}; what was measured is in {args.out}")
    except (Failure, OSError) as failure:
        say(f"gpu_check: {failure}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
