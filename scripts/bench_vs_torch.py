#!/usr/bin/env python3
"""Measures slt-run against PyTorch and Pillow on this machine's CPU, and prints one table.

Sections, in the order in which they run:
  step      a training step of the default network, 2 x 8 and 1 x 8 frames of 224 px: time and peak memory
  head      a training step of all that follows the backbones, 4 x 128 frames, for either decoder
  defaults  the documented defaults, 4 x 128 frames: time and peak memory (minutes; PyTorch would need 147 GB)
  frames    steps in chunks with 8, 32 and 128 frames: is time linear, is memory flat?
  eval      the forward pass in evaluation, and its memory with 8, 32 and 128 frames
  data      from files to a batch's bytes, against Pillow and numpy; loader threads; a run's wait for data
  listing   a folder of 1,000,000 files (only where --only names it: it makes them first)

Steps, heads and evaluation are measured in float32 and in bfloat16 (PyTorch's by autocast), and rows name the better of
either side. Both sides get the same number of threads and take turns; each run counts by its fastest step, and a ratio is
the median over the pairs of runs. Other work on the machine spoils the figures. PyTorch comes from --python, which has torch,
numpy and Pillow, or from a virtual environment that is made in target/torch and kept. With --json FILE the results are
kept there, and the table beside it; sections that it holds and that are not measured now stay. The exit code is 0 where
everything was measured, whether or not it meets its target.
"""
from __future__ import annotations

import math
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from statistics import median

import lab
from lab import ROOT, dataset, rate, say, seconds

gib = "{:.2f} GiB".format
# What each side calls a precision.
OURS, THEIRS = {"float32": "fp32", "bfloat16": "bf16"}, {"float32": "eager-f32", "bfloat16": "eager-bf16"}


def fresh(folder: Path, ids: list[str]) -> Path:
    """A dataset of these clips, without their images."""
    for name in ("face", "hand_l", "hand_r", "pose", "index"):
        (folder / name).mkdir(parents=True)
    (folder / "subs.csv").write_text("\n".join(["video_id;texto", *(f"{id};one" for id in ids)]))
    for name, own in (("train", ids), ("val", ids[:1])):
        (folder / "index" / f"{name}.csv").write_text("\n".join(["video_id", *own]))
    return folder


class Bench(lab.Lab):
    PARTS = {"step": "a training step", "head": "all that follows the backbones",
             "defaults": "the documented defaults", "frames": "chunked steps", "eval": "evaluation", "data": "from files to batches", "listing": "a folder of 1,000,000 files"}
    JUDGED, KEYS = False, ["cpu", "cores", "threads"]

    def ours(self, *flags: object, steps: int | None = None, precision: str = "fp32") -> dict:
        return self.bench("--steps", steps or self.args.steps, "--precision", precision, *self.args.alike, *flags)

    def clips(self, batch: int, frames: int, *more: object, **how) -> dict:
        return self.ours("--batch-size", batch, "--sequence-length", frames, *more, **how)

    def theirs(self, *command: object, steps: int | None = None) -> dict:
        return self.peer(*command, "--steps", steps or self.args.steps, "--threads", self.args.threads, "--device",
                         self.args.device)

    def turns(self, name: str, *sides) -> list[tuple[dict, ...]]:
        """Runs of all sides in turns; who is first alternates, so that a machine that slows down favours none."""
        found = []
        for at in range(self.args.pairs):
            runs = {side: side() for side in (sides if at % 2 == 0 else sides[::-1])}
            found.append(tuple(runs[side] for side in sides))
        return self.raw(name, found)

    def precisions(self, name: str, ours, theirs, least: tuple[float, float], memory: float | None = None) -> None:
        """`ours` and `theirs` measure in a precision. At `least` so many times as fast: the better of ours as the better of
        theirs, and float32 as float32; with `memory` times the peak, at most, of the same precision."""
        sides = [lambda run=run, of=of: run(of) for run in (ours, theirs) for of in ("float32", "bfloat16")]
        found = self.turns(name, *sides)
        fastest = [median(run["step_s_min"] for run in side) for side in zip(*found)]
        of_ours, of_theirs = min((0, 1), key=lambda at: fastest[at]), min((2, 3), key=lambda at: fastest[at])
        named = [run["precision"] for run in found[0][:2]] + ["float32", "bfloat16"]
        for title, a, b, times in (("the better of each", of_ours, of_theirs, least[0]), ("float32", 0, 2, least[1])):
            words = lambda at: f"{seconds(fastest[at])} ({named[at]})"  # noqa: E731
            ratio = median(runs[b]["step_s_min"] / runs[a]["step_s_min"] for runs in found)
            self.row(f"{name}, {title}: time", f"{words(a)}, PyTorch {words(b)}: {ratio:.2f} ×",
                     f"≥ {times:g} × as fast", ratio >= times)
        # Without the instructions, both of ours are float32.
        for at in range(len(set(named[:2])) if memory is not None else 0):
            peaks = [(runs[at]["peak_rss_gib"], runs[at + 2]["peak_rss_gib"]) for runs in found]
            mine, other, share = *map(median, zip(*peaks)), median(a / b for a, b in peaks)
            self.row(f"{name}, {named[at]}: peak memory", f"{gib(mine)}, PyTorch {gib(other)}: {share:.2f} ×",
                     f"≤ {memory:g} ×", share <= memory)
        most = [run for run in found[0][:2] if run.get("product_gflops")]
        shares = (f"{run['precision']} {run['gflops']:.0f} of {run['product_gflops']:.0f} GFLOP/s" for run in most)
        self.row(f"{name}: share of the machine's own products", "; ".join(shares))

    def faster(self, name: str, pairs: list[tuple], least: float, words=seconds, who: str = "PyTorch") -> None:
        ours, theirs = (words(median(side)) for side in zip(*pairs))
        ratio = median(b / a for a, b in pairs)
        self.row(name, f"{ours}, {who} {theirs}: {ratio:.2f} ×", f"≥ {least:g} × as fast", ratio >= least)

    def flat(self, name: str, runs: dict[int, dict]) -> None:
        """Peaks less the batch's own bytes, which have to grow with T: do they stay?"""
        own = [run["peak_rss_gib"] - run["images"] * 3 * 224**2 / 2**30 for run in self.raw(name, runs).values()]
        self.row(f"{name}, 2 × T frames, T = {', '.join(map(str, runs))}: peak memory",
                 " / ".join(gib(run["peak_rss_gib"]) for run in runs.values())
                 + f": {own[-1] / own[0]:.2f} × without the images' bytes", "flat: ≤ 1.25 ×", own[-1] <= 1.25 * own[0])

    def part_step(self) -> None:
        for batch in (2, 1):
            self.precisions(f"training step, {batch} × 8 frames",
                            lambda of: self.clips(batch, 8, precision=OURS[of]),
                            lambda of: self.theirs("step", batch, 8, 224, "--mode", THEIRS[of]), (1.2, 1.25), 0.6)

    def part_head(self) -> None:
        for kind, decoder in (("classes", "stub"), ("translation", "transformer")):
            flags = ["--features", "--set", f"model.decoder.kind={decoder}"]
            self.precisions(f"all but the backbones, {kind}, 4 × 128 frames",
                            lambda of: self.clips(4, 128, *flags, precision=OURS[of]),
                            lambda of: self.theirs("head", 4, 128, "--kind", kind, "--mode", THEIRS[of]), (1, 1.25), 1)

    def part_defaults(self) -> None:
        whole = self.raw("run", self.ours(steps=1))
        held = self.report.parts.get("step", {"raw": {}})["raw"].get("training step, 2 × 8 frames")
        short = median(runs[0]["images"] / runs[0]["step_s_min"] for runs in held or [[self.clips(2, 8)]])
        ours, peak = whole["images"] / whole["step_s_min"], whole["peak_rss_gib"]
        self.row("documented defaults, 4 × 128 frames: images", f"{rate(ours)}: {ours / short:.2f} × of 2 × 8 frames, "
                 f"{seconds(whole['step_s_min'])} a step, chunks of {whole['frames_per_chunk'] or 'all'} frames",
                 "≥ 0.7 ×", ours / short >= 0.7)
        self.row("documented defaults: peak memory", f"{gib(peak)}, PyTorch needs 147 GB", "≤ 8 GiB", peak <= 8)

    def part_frames(self) -> None:
        """Two clips in chunks of 8 frames, so that the shortest is chunked as well."""
        chunk = ["--set", "optimization.frames_per_chunk=8"]
        runs = {t: self.clips(2, t, *chunk, steps=2 if t < 128 else 1) for t in self.args.lengths}
        each = [run["step_s_min"] / run["images"] for run in runs.values()]
        self.row(f"chunked steps, 2 × T frames, T = {', '.join(map(str, runs))}: time an image",
                 f"{' / '.join(map(seconds, each))}: {each[-1] / min(each):.2f} ×", "linear: ≤ 1.15 × the least",
                 each[-1] <= 1.15 * min(each))
        self.flat("chunked steps", runs)

    def part_eval(self) -> None:
        self.precisions("evaluation, 2 × 8 frames", lambda of: self.clips(2, 8, "--evaluation", precision=OURS[of]),
                        lambda of: self.theirs("forward", 2, 8, 224, "--mode", THEIRS[of]), (1.2, 1.15))
        self.flat("evaluation", {t: self.clips(2, t, "--evaluation", steps=1) for t in self.args.lengths})

    def part_data(self) -> None:
        mini, large = self.args.shared / "data" / "lsa_t_mini", self.work / "large"
        ids = (mini / "index" / "train.csv").read_text().split()[1:]
        # A pass over the small ones is short: the first few still warm up.
        self.loading("crops of lsa_t_mini", mini, ids, 3, 20)
        fresh(large, ids[:8])
        self.peer("enlarge", self.listed(mini, ids[:8]), large)
        self.loading("crops of 1000 to 1600 px", large, ids[:8], 1, self.args.steps)
        lines = self.train("training", mini.with_suffix(".toml"), *dataset(mini), "--precision", "fp32", *self.args.alike)
        self.waiting("a run on lsa_t_mini", self.raw("metrics", lines))

    def listed(self, data: Path, ids: list[str]) -> Path:
        """A file that names these clips' images."""
        images = [str(path) for id in ids for path in sorted(data.glob(f"*/{id}_f*.jpg"))]
        (self.work / "images.txt").write_text("\n".join(images))
        return self.work / "images.txt"

    def load(self, data: Path, length: int, workers: int, passes: int, size: int = 224) -> dict:
        return self.ours("--data", "--sequence-length", length, "--num-workers", workers, "--image-size", size,
                         *dataset(data), steps=passes)

    def loading(self, name: str, data: Path, ids: list[str], target: float, passes: int) -> None:
        threads, files = self.args.threads, self.listed(data, ids)
        length = max(len(list((data / "face").glob(f"{id}_f*.jpg"))) for id in ids)
        pairs = self.turns(name, lambda: self.load(data, length, threads, passes),
                           lambda: self.theirs("images", files, 224, steps=passes))
        each = [(a["one_thread_s_min"] / a["images"], b["step_s_min"] / b["images"]) for a, b in pairs]
        self.faster(f"{name} to 224 px, one thread", each, target, lambda each: rate(1 / each), "Pillow")
        scale = median(a["one_thread_s_min"] / a["step_s_min"] for a, _ in pairs)
        together = rate(median(a["images"] / a["step_s_min"] for a, _ in pairs))
        self.row(f"{name}, {threads} threads", f"{together}: {scale:.2f} × one thread",
                 f"scales: ≥ {0.8 * threads:g} ×", scale >= 0.8 * threads)

    def part_listing(self) -> None:
        """One crop under many names, in clips of 1000 frames."""
        runs, few, many = {}, 10_000, 1_000_000
        crop = next((self.args.shared / "data" / "lsa_t_mini" / "face").glob("*.jpg")).read_bytes()
        for files in (few, many):
            ids = [f"clip{n:06d}" for n in range(files // 1000)]
            data = fresh(self.work / str(files), ids)
            for id in ids:
                # A file system allows some ten thousand names a file: each clip has a file of its own.
                own = data / "face" / f"{id}_f000000.jpg"
                own.write_bytes(crop)
                for frame in range(1, 1000):
                    os.link(own, data / "face" / f"{id}_f{frame:06d}.jpg")
            runs[files] = self.load(data, 1, 0, 1, size=16)
        listed = self.raw("runs", runs)[many]["open_s"]
        each = (runs[many]["peak_rss_gib"] - runs[few]["peak_rss_gib"]) * 2**30 / (many - few)
        self.row("a folder of 1,000,000 files: listed", seconds(listed), "≤ 3 s", listed <= 3)
        self.row("a folder of 1,000,000 files: memory", f"{each:.0f} bytes a file", "≤ 100 bytes", each <= 100)


def made(what: Path, *commands: list) -> Path:
    for command in commands:
        say(f"making {what}: {' '.join(map(str, command))}")
        if subprocess.run(command, cwd=ROOT, stdout=sys.stderr, check=False).returncode:
            sys.exit(2)
    return what


def arguments() -> Namespace:
    sections = list(Bench.PARTS)
    ap = lab.parser(__doc__, Bench.PARTS, sections[:-1])
    ap.add_argument("--pairs", type=int, help="pairs of runs [5]")
    ap.add_argument("--steps", type=int, help="steps of each run [3]")
    ap.add_argument("--threads", type=int, default=min(2, lab.CORES), help="threads for either side [%(default)s]")
    ap.add_argument("--program", metavar="PATH", type=Path, help="an slt-run that is built already")
    ap.add_argument("--json", metavar="FILE", dest="file", type=Path, help="keep results, and those of other sections")
    args = ap.parse_args()
    if args.quick and args.parts == sections[:-1]:
        args.parts.remove("defaults")
    args.pairs = args.pairs or (1 if args.quick else 5)
    args.steps = args.steps or (2 if args.quick else 3)
    args.lengths = [8, 32] if args.quick else [8, 32, 128]
    args.device, args.log, args.limit = "cpu", Path(os.devnull), math.inf
    args.alike = ["--set", f"run.threads={args.threads}"]
    args.about = {"commit": subprocess.getoutput(f"git -C '{ROOT}' describe --always --dirty"), "threads": args.threads}
    target, env = ROOT / os.environ.get("CARGO_TARGET_DIR", "target"), ROOT / "target" / "torch"
    # PyTorch for the CPU is smaller, and taken where its own index is to be had.
    pip = [env / "bin" / "pip", "install", "--quiet", "--extra-index-url", "https://download.pytorch.org/whl/cpu"]
    args.program = (args.program or made(target / "release" / "slt-run", ["cargo", "build", "--release"])).absolute()
    args.python = args.python or made(env / "bin" / "python", [sys.executable, "-m", "venv", env],
                                      [*pip, "torch", "numpy", "pillow"])
    return args


if __name__ == "__main__":
    sys.exit(lab.main(Bench, arguments()))
