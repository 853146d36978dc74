#!/usr/bin/env python3
"""Measures slt-run against PyTorch and Pillow on this machine's CPU, and prints one table.

    scripts/bench_vs_torch.py [--quick] [--only step,data] [--pairs 5] [--json FILE]

Sections, in the order in which they run:
  step      a training step of the default network, 2 x 8 and 1 x 8 frames of 224 px: time and peak memory
  defaults  the documented defaults, 4 x 128 frames: time and peak memory (minutes; PyTorch would need 147 GB)
  frames    steps in chunks with 8, 32 and 128 frames: is time linear, is memory flat?
  eval      the forward pass in evaluation, and its memory with 8, 32 and 128 frames
  data      from files to a batch's bytes, against Pillow and numpy; loader threads; a run's wait for data
  listing   a folder of 1,000,000 files (only where --only names it: it makes them first)

Both sides get the same number of threads and take turns; each run counts by its fastest step, and a ratio is the median
over the pairs of runs. PyTorch comes from --torch-python or $PYTHON, an interpreter that has torch, numpy and Pillow;
otherwise a virtual environment is made in target/torch and kept. Other work on the machine spoils the figures.

With --json FILE the results are kept there; sections that it holds from before and that are not measured now stay in
the table. The exit code is 0 where everything was measured, whether or not it meets its target.
"""
from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ROOT / "scripts"
CONFIG = "configs/multistream_v9.toml"
SECTIONS = ["step", "defaults", "frames", "eval", "data", "listing"]
CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
SIZE = 224


class Failure(Exception):
    """What stops the measuring; its text is all that a person sees."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def call(command: list, what: str, capture: bool = True) -> str:
    """Runs a command in the project's root, in an environment without settings for slt-run; its standard output."""
    unset = {"RAYON_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"}
    env = {k: v for k, v in os.environ.items() if not k.startswith("SLT_") and k not in unset}
    command = [str(part) for part in command]
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE if capture else None, check=False)
    except OSError as error:
        raise Failure(f"{what}: cannot start {command[0]}: {error.strerror or error}") from error
    if done.returncode != 0:
        end = f"was killed by signal {-done.returncode}" if done.returncode < 0 else f"ended with code {done.returncode}"
        last = "\n".join((done.stderr or "").strip().splitlines()[-8:])
        raise Failure(f"{what} failed: `{' '.join(command)}` {end}" + (f"\n{last}" if last else ""))
    return done.stdout


def call_json(command: list, what: str) -> dict:
    text = call(command, what)
    try:
        return json.loads(text.strip().splitlines()[-1])
    except (IndexError, json.JSONDecodeError) as error:
        raise Failure(f"{what}: expected a line of JSON from `{' '.join(map(str, command))}`, got {text!r}") from error


def torch_python(asked: str | None) -> Path:
    """An interpreter that has torch, numpy and Pillow."""
    modules = {"torch": "torch", "numpy": "numpy", "PIL": "pillow"}

    def lacks(python: Path) -> list[str]:
        test = "import importlib.util as u, sys; print(*[m for m in sys.argv[1:] if u.find_spec(m) is None])"
        return call([python, "-c", test, *modules], f"looking for PyTorch in {python}").split()

    if asked:
        python = Path(asked).absolute()
        missing = lacks(python)
        if missing:
            raise Failure(f"{asked} lacks {', '.join(missing)}: install {' '.join(modules[m] for m in missing)} for it, "
                          "or leave the option out to have an environment made")
        return python
    folder = ROOT / "target" / "torch"
    python = folder / "bin" / "python"
    if not python.exists():
        say(f"making {folder}")
        call([sys.executable, "-m", "venv", folder], "making a virtual environment")
    pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for module in lacks(python):
        say(f"installing {modules[module]} into {folder}")
        if module == "torch":
            try:
                call([*pip, "--retries", "1", "--index-url", CPU_WHEELS, "torch"], "installing PyTorch for the CPU")
                continue
            except Failure:
                say(f"{CPU_WHEELS} has none to give: taking the package index's own, which is larger")
        call([*pip, modules[module]], f"installing {modules[module]}")
    return python


def build() -> Path:
    """Builds slt-run; the program's path."""
    say("building slt-run")
    command = ["cargo", "build", "--release", "--bin", "slt-run", "--message-format", "json-render-diagnostics"]
    for line in call(command, "the build", capture=False).splitlines():
        message = json.loads(line) if line.startswith("{") else {}
        if message.get("executable") and message.get("target", {}).get("name") == "slt-run":
            return Path(message["executable"])
    raise Failure("cargo built no slt-run")


def machine(program: Path, python: Path, threads: int) -> dict:
    """What the figures depend on."""

    def first(pattern: str, path: str) -> str | None:
        try:
            found = re.search(pattern, Path(path).read_text(), re.MULTILINE)
        except OSError:
            return None
        return found.group(1).strip() if found else None

    kilobytes = first(r"^MemTotal:\s*(\d+) kB", "/proc/meminfo")
    flags = (first(r"^flags\s*:(.*)$", "/proc/cpuinfo") or "").split()
    vectors = next((name for flag, name in [("avx512f", "AVX-512"), ("avx2", "AVX2")] if flag in flags), "")
    try:
        commit = call(["git", "describe", "--always", "--dirty"], "git").strip()
    except Failure:
        commit = "unknown"
    return {
        "cpu": first(r"^model name\s*:(.*)$", "/proc/cpuinfo") or platform.processor() or platform.machine(),
        "vectors": vectors,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(int(kilobytes) / 2**20, 1) if kilobytes else None,
        "system": platform.system(),
        "threads": threads,
        "slt_run": call([program, "--version"], "slt-run").split()[-1] + f" ({commit})",
        **call_json([python, SCRIPTS / "torch_bench_peer.py", "versions"], "looking for PyTorch's version"),
    }


def times(number: float) -> str:
    return f"{number:.2f} ×"


def rate(number: float) -> str:
    return f"{number:,.0f}/s" if number >= 100 else f"{number:.1f}/s"


def seconds(number: float) -> str:
    return f"{number:.2f} s" if number >= 1 else f"{1e3 * number:.{0 if number >= 0.1 else 1}f} ms"


def gib(number: float) -> str:
    return f"{number:.2f} GiB"


class Bench:
    def __init__(self, args, program: Path, python: Path):
        self.args, self.program, self.python = args, program, python
        self.rows: list[dict] = []
        self.section = ""
        self.step_rate: float | None = None

    def row(self, name: str, ours: str, torch: str, ratio: str, target: str, holds: bool, runs: object) -> None:
        today = datetime.date.today().isoformat()
        self.rows.append({"section": self.section, "row": name, "ours": ours, "torch": torch, "ratio": ratio,
                          "target": target, "holds": holds, "measured": today, "runs": runs})
        say(f"  {name}: {ours} | {torch} | {ratio} | {target} | {'yes' if holds else 'no'}")

    def slt(self, *args: object, config: str = CONFIG) -> dict:
        command = [self.program, "bench", config, "--json", "--device", "cpu", "--precision", "fp32",
                   "--set", f"run.threads={self.args.threads}", *args]
        return call_json(command, "slt-run bench")

    def ours(self, batch: int, frames: int, *more: object, steps: int | None = None) -> dict:
        return self.slt("--batch-size", batch, "--sequence-length", frames, "--image-size", SIZE,
                        "--steps", steps or self.args.steps, *more)

    def theirs(self, script: str, command: str, batch: int, frames: int) -> dict:
        return call_json([self.python, SCRIPTS / script, command, batch, frames, SIZE, "--steps", self.args.steps,
                          "--threads", self.args.threads], "PyTorch")

    def pairs(self, ours, theirs) -> list[tuple[dict, dict]]:
        """Pairs of runs; who is first alternates, so that a machine that slows down favours neither."""
        found = []
        for at in range(self.args.pairs):
            if at % 2 == 0:
                a = ours()
                b = theirs()
            else:
                b = theirs()
                a = ours()
            found.append((a, b))
        return found

    def against(self, name: str, pairs: list, target: float, memory_target: float | None) -> None:
        """Rows for the time, and for the memory where it has a target."""

        def median(numbers) -> float:
            return statistics.median(list(numbers))

        speed = median(b["step_s_min"] / a["step_s_min"] for a, b in pairs)
        a, b = (median(pair[side]["step_s_min"] for pair in pairs) for side in (0, 1))
        self.row(f"{name}: time", seconds(a), seconds(b), times(speed), f"≥ {target} × as fast", speed >= target, pairs)
        if memory_target:
            share = median(a["peak_rss_gib"] / b["peak_rss_gib"] for a, b in pairs)
            a, b = (median(pair[side]["peak_rss_gib"] for pair in pairs) for side in (0, 1))
            self.row(f"{name}: peak memory", gib(a), gib(b), times(share), f"≤ {memory_target} ×", share <= memory_target,
                     None)

    def step(self) -> None:
        for batch in (2, 1):
            pairs = self.pairs(lambda b=batch: self.ours(b, 8), lambda b=batch: self.theirs("torch_peer.py", "step", b, 8))
            self.against(f"training step, {batch} × 8 frames", pairs, 1.25, 0.6)
            if batch == 2:
                self.step_rate = statistics.median(a["images"] / a["step_s_min"] for a, _ in pairs)

    def defaults(self) -> None:
        whole = self.slt("--steps", 1)
        if self.step_rate is None:
            short = self.ours(2, 8)
            self.step_rate = short["images"] / short["step_s_min"]
        ours = whole["images"] / whole["step_s_min"]
        share = ours / self.step_rate
        name = f"documented defaults, 4 × 128 frames ({seconds(whole['step_s_min'])} a step, chunks of " \
               f"{whole['frames_per_chunk'] or 'all'} frames)"
        self.row(f"{name}: images", rate(ours), "needs 147 GB", f"{times(share)} of 2 × 8 frames", "≥ 0.7 ×", share >= 0.7, whole)
        peak = whole["peak_rss_gib"]
        self.row("documented defaults: peak memory", gib(peak), "needs 147 GB", "", "≤ 8 GiB", peak <= 8, None)

    def frames(self) -> None:
        """Two clips in chunks of 8 frames, so that the shortest is chunked as well."""
        lengths = self.args.lengths
        runs = {t: self.ours(2, t, "--set", "optimization.frames_per_chunk=8", steps=2 if t < 128 else 1) for t in lengths}
        each = {t: runs[t]["step_s_min"] / runs[t]["images"] for t in lengths}
        growth = each[lengths[-1]] / min(each.values())
        names = ", ".join(map(str, lengths))
        self.row(f"chunked steps, 2 × T frames, T = {names}: time an image", " / ".join(seconds(each[t]) for t in lengths), "",
                 times(growth), "linear: ≤ 1.15 × the least", growth <= 1.15, runs)
        self.flat(f"chunked steps, T = {names}: peak memory", runs)

    def flat(self, name: str, runs: dict[int, dict]) -> None:
        """Peaks less the batch's own bytes, which have to grow with T: do they stay?"""
        peaks = {t: run["peak_rss_gib"] for t, run in runs.items()}
        own = {t: peaks[t] - run["images"] * 3 * SIZE**2 / 2**30 for t, run in runs.items()}
        first, last = min(runs), max(runs)
        growth = own[last] / own[first]
        self.row(name, " / ".join(gib(peaks[t]) for t in runs), "", f"{times(growth)} without the images' bytes",
                 "flat: ≤ 1.25 ×", growth <= 1.25, runs)

    def eval(self) -> None:
        pairs = self.pairs(lambda: self.ours(2, 8, "--evaluation"),
                           lambda: self.theirs("torch_bench_peer.py", "forward", 2, 8))
        self.against("evaluation, 2 × 8 frames", pairs, 1.15, None)
        lengths = self.args.lengths
        runs = {t: self.ours(2, t, "--evaluation", steps=1) for t in lengths}
        self.flat(f"evaluation, 2 × T frames, T = {', '.join(map(str, lengths))}: peak memory", runs)

    def data(self) -> None:
        data = Dataset(self.program, self.args.experiment)
        with tempfile.TemporaryDirectory() as temp:
            work = Path(temp)
            # A pass over the small ones is short: the first few still warm up.
            self.against_pillow("crops of " + self.args.experiment.stem, data, data.train_ids(), work, 3.0, 20)
            ids = data.train_ids()[:8]
            large = data.enlarged(ids, self.python, work / "large")
            self.against_pillow("crops of 1000 to 1600 px", large, ids, work, 1.0, self.args.steps)
            self.wait(data, work / "run")

    def against_pillow(self, name: str, data: Dataset, ids: list[str], work: Path, target: float,
                       passes: int) -> None:
        files = work / "files.txt"
        frames = data.frames(ids)
        files.write_text("".join(f"{path}\n" for path in frames))
        length = max(len([path for path in frames if path.name.startswith(f"{id}_f")]) // 3 for id in ids)

        def ours() -> dict:
            return self.slt("--data", "--steps", passes, "--image-size", SIZE, "--sequence-length", length,
                            "--num-workers", self.args.threads, *data.flags(), config=str(self.args.experiment))

        def theirs() -> dict:
            command = [self.python, SCRIPTS / "torch_bench_peer.py", "images", files, SIZE, "--passes", passes]
            return call_json(command, "Pillow")

        pairs = self.pairs(ours, theirs)
        images = pairs[0][0]["images"]
        if images != len(frames):
            raise Failure(f"slt-run loads {images} images of {name} and Pillow {len(frames)}: the clips of "
                          f"{self.args.experiment} must be equally long and complete")
        ratio = statistics.median(b["step_s_min"] / a["one_thread_s_min"] for a, b in pairs)
        own = statistics.median(images / a["one_thread_s_min"] for a, _ in pairs)
        pillow = statistics.median(images / b["step_s_min"] for _, b in pairs)
        self.row(f"{name} to {SIZE} px, one thread", rate(own), f"{rate(pillow)} (Pillow)", times(ratio),
                 f"≥ {target:g} × as fast", ratio >= target, pairs)
        if self.args.threads > 1:
            scale = statistics.median(a["one_thread_s_min"] / a["step_s_min"] for a, _ in pairs)
            shared = statistics.median(images / a["step_s_min"] for a, _ in pairs)
            least = 0.8 * self.args.threads
            self.row(f"{name}, {self.args.threads} threads", rate(shared), "", f"{times(scale)} one thread",
                     f"scales: ≥ {least:g} ×", scale >= least, None)

    def wait(self, data: Dataset, folder: Path) -> None:
        call([self.program, self.args.experiment, "--work-dir", folder, "--quiet", "--device", "cpu", "--precision", "fp32",
              "--tensorboard", "", "--set", f"run.threads={self.args.threads}"], "training")
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        waited, all_of_it = (sum(line[key] for line in lines) for key in ("data_wait_seconds", "seconds"))
        share = waited / all_of_it
        self.row(f"a run on {self.args.experiment.stem}: wait for data", f"{100 * share:.2f} % of {seconds(all_of_it)}", "", "",
                 "≤ 2 %", share <= 0.02, lines)

    def listing(self) -> None:
        few, many = 10_000, 1_000_000
        with tempfile.TemporaryDirectory() as temp:
            say(f"making {many} files")
            small, large = (Dataset.of_links(self.program, self.args.experiment, Path(temp) / str(n), n) for n in (few, many))
            runs = [self.slt("--data", "--steps", 1, "--image-size", 16, "--set", "model.backbone.patch_size=16",
                             "--sequence-length", 1, "--num-workers", 0, *data.flags(), config=str(self.args.experiment))
                    for data in (small, large)]
        listed = runs[1]["open_s"]
        each = (runs[1]["peak_rss_gib"] - runs[0]["peak_rss_gib"]) * 2**30 / (many - few)
        self.row("a folder of 1,000,000 files: listed", seconds(listed), "", "", "≤ 3 s", listed <= 3, runs)
        self.row("a folder of 1,000,000 files: memory", f"{each:.0f} bytes a file", "", "", "≤ 100 bytes", each <= 100, None)


class Dataset:
    """Where an experiment's clips are."""

    STREAMS = ("face_dir", "hand_left_dir", "hand_right_dir")
    PATHS = (*STREAMS, "pose_dir", "metadata_csv", "train_index", "val_index")

    def __init__(self, program: Path, experiment: Path):
        self.paths: dict[str, Path] = {}
        if not (ROOT / experiment).exists():
            raise Failure(f"there is no {experiment}, whose clips the section `data` needs: --experiment names another "
                          "file, --only leaves the section out")
        shown = call([program, "config", experiment], "reading the experiment")
        for key in self.PATHS:
            found = re.search(rf'^{key} = "(.*?)"\s+#', shown, re.MULTILINE)
            if not found or not (ROOT / found.group(1)).exists():
                raise Failure(f"data.{key} of {experiment} is {found.group(1) if found else 'not set'}, which is not there")
            self.paths[key] = ROOT / found.group(1)

    def flags(self) -> list[str]:
        return [part for key in self.PATHS for part in (f"--{key.replace('_', '-')}", str(self.paths[key]))]

    def train_ids(self) -> list[str]:
        """The first column, without a header of its own."""
        lines = self.paths["train_index"].read_text(encoding="utf-8").splitlines()
        ids = [re.split("[,;]", line)[0].strip().strip('"') for line in lines if line.strip()]
        return [id for id in ids if id not in ("video_id", "id")]

    def frames(self, ids: list[str]) -> list[Path]:
        found = [path for key in self.STREAMS for id in ids for path in sorted(self.paths[key].glob(f"{id}_f*.jpg"))]
        if not found:
            raise Failure(f"{self.paths['face_dir']} has no frame of the training clips")
        return found

    def moved(self, folder: Path, train: list[str], val: list[str]) -> Dataset:
        """The same poses and texts with other frames, which are to be put into `folder`."""
        other = object.__new__(Dataset)
        other.paths = dict(self.paths)
        for key in self.STREAMS:
            other.paths[key] = folder / key
            other.paths[key].mkdir(parents=True)
        for key, ids in (("train_index", train), ("val_index", val)):
            other.paths[key] = folder / f"{key}.csv"
            other.paths[key].write_text("".join(f"{id}\n" for id in ["video_id", *ids]))
        return other

    def enlarged(self, ids: list[str], python: Path, folder: Path) -> Dataset:
        say("enlarging crops")
        other = self.moved(folder, ids, ids[:1])
        pairs = [(path, other.paths[key] / path.name) for key in self.STREAMS for id in ids
                 for path in sorted(self.paths[key].glob(f"{id}_f*.jpg"))]
        table = folder / "pairs.txt"
        table.write_text("".join(f"{source}\t{target}\n" for source, target in pairs))
        call([python, SCRIPTS / "torch_bench_peer.py", "enlarge", table], "enlarging crops")
        return other

    @classmethod
    def of_links(cls, program: Path, experiment: Path, folder: Path, files: int) -> Dataset:
        """One clip's faces, `files` of them, in clips of 1000 frames; names of a few files."""
        data = cls(program, experiment)
        source = data.frames(data.train_ids())[0]
        ids = [f"clip{n:06d}" for n in range(files // 1000)]
        other = data.moved(folder, ids, ids[:1])
        other.paths["pose_dir"] = folder
        other.paths["metadata_csv"] = folder / "subs.csv"
        other.paths["metadata_csv"].write_text("video_id;texto\n" + "".join(f"{id};one\n" for id in ids))
        face = other.paths["face_dir"]
        for at, id in enumerate(ids):
            # A file system allows some ten thousand names a file: each clip has a file of its own.
            own = face / f"{id}_f000000.jpg"
            own.write_bytes(source.read_bytes())
            for frame in range(1, 1000):
                os.link(own, face / f"{id}_f{frame:06d}.jpg")
        return other


def markdown(rows: list[dict], about: dict) -> str:
    memory = f", {about['memory_gib']} GiB" if about["memory_gib"] else ""
    vectors = f", {about['vectors']}" if about["vectors"] else ""
    lines = [f"{about['cpu']}{vectors}, {about['cores']} cores{memory}, {about['system']}; {about['threads']} threads; slt-run "
             f"{about['slt_run']}, PyTorch {about['torch']}, Pillow {about['pillow']}, numpy {about['numpy']}; "
             f"measured {' and '.join(sorted({row['measured'] for row in rows}))}.", "",
             "| | slt-run | PyTorch | ratio | target | holds |", "|---|---|---|---|---|---|"]
    for row in rows:
        cells = [row["row"], row["ours"], row["torch"], row["ratio"], row["target"], "yes" if row["holds"] else "**no**"]
        lines.append("|" + "|".join(f" {cell} " if cell else " " for cell in cells) + "|")
    return "\n".join(lines)


def arguments() -> argparse.Namespace:
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ap.add_argument("--quick", action="store_true", help="one pair of two steps, no 128 frames: a look, not a result")
    ap.add_argument("--only", metavar="SECTIONS", help="sections to measure, with commas [all but listing]")
    ap.add_argument("--pairs", type=int, help="pairs of runs [5]")
    ap.add_argument("--steps", type=int, help="steps of each run [3]")
    ap.add_argument("--threads", type=int, default=min(2, cores), help="threads for either side [%(default)s]")
    ap.add_argument("--torch-python", metavar="PATH", default=os.environ.get("PYTHON"), help="an interpreter with torch")
    ap.add_argument("--experiment", metavar="FILE", type=Path, default=Path("../shared/data/lsa_t_mini.toml"),
                    help="whose clips the data sections load [%(default)s]")
    ap.add_argument("--json", metavar="FILE", type=Path, help="keep the results here, and those of other sections")
    args = ap.parse_args()
    asked = args.only.split(",") if args.only else [s for s in SECTIONS[:-1] if not (args.quick and s == "defaults")]
    unknown = [name for name in asked if name not in SECTIONS]
    if unknown:
        ap.error(f"no section {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    for name in ("pairs", "steps", "threads"):
        if (getattr(args, name) or 1) < 1:
            ap.error(f"--{name} must be at least 1")
    args.sections = [name for name in SECTIONS if name in asked]
    args.pairs = args.pairs or (1 if args.quick else 5)
    args.steps = args.steps or (2 if args.quick else 3)
    args.lengths = [8, 32] if args.quick else [8, 32, 128]
    return args


def earlier(path: Path | None, about: dict) -> list[dict]:
    """The rows of an earlier run on the same machine."""
    if path is None or not path.exists():
        return []
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        before, rows = held["machine"], [dict(row) for row in held["rows"] if row["section"] in SECTIONS]
        same = all(before[key] == about[key] for key in ("cpu", "cores", "threads"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Failure(f"{path} is not a file that --json wrote: {type(error).__name__}: {error}") from error
    if not same:
        raise Failure(f"{path} holds results of {before['cpu']}, {before['threads']} threads: one table is of one machine; "
                      "name another file")
    return rows


def main() -> None:
    args = arguments()
    program, python = build(), torch_python(args.torch_python)
    about = machine(program, python, args.threads)
    kept = [row for row in earlier(args.json, about) if row["section"] not in args.sections]
    bench = Bench(args, program, python)
    for bench.section in args.sections:
        say(f"{bench.section}:")
        getattr(bench, bench.section)()
    rows = sorted(kept + bench.rows, key=lambda row: SECTIONS.index(row["section"]))
    if args.json:
        try:
            args.json.write_text(json.dumps({"machine": about, "rows": rows}, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise Failure(f"cannot write {args.json}: {error.strerror}") from error
    print(markdown(rows, about))


if __name__ == "__main__":
    try:
        main()
    except Failure as failure:
        sys.exit(f"error: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)
