"""The one way in which gpu_check.py and bench_vs_torch.py run programs, report and fail: each program has a time limit,
every result is on the disk at once, and what cannot be measured is a row that does not hold."""
from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIG, PEER = ROOT / "configs" / "multistream_v9.toml", ROOT / "scripts" / "torch_bench.py"
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
# Settings for slt-run and numbers of threads, which would change what is measured.
UNSET = re.compile(r"SLT_|(RAYON|OMP|MKL)_NUM_THREADS$")
LAYOUT = {"--face-dir": "face", "--hand-left-dir": "hand_l", "--hand-right-dir": "hand_r", "--pose-dir": "pose",
          "--metadata-csv": "subs.csv", "--train-index": "index/train.csv", "--val-index": "index/val.csv"}
MARKS = {True: "yes", False: "**no**", None: ""}


class Failure(Exception):
    """Why something could not be measured; its text goes into the table."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def rate(number: float) -> str:
    return f"{number:,.0f}/s" if number >= 100 else f"{number:.1f}/s"


def seconds(number: float) -> str:
    return f"{number:.2f} s" if number >= 1 else f"{1e3 * number:.{0 if number >= 0.1 else 1}f} ms"


def dataset(folder: Path) -> list:
    """Flags for a dataset of the documented layout."""
    return [part for flag, name in LAYOUT.items() for part in (flag, folder / name)]


def metrics(run: Path) -> list[dict]:
    """The whole lines of a run's metrics so far."""
    text = (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else ""
    return [json.loads(line) for line in text.split("\n")[:-1]]


class Runner:
    """Runs one program at a time, each until its own limit or the whole's, whichever is first."""

    def __init__(self, log: Path, limit: float):
        self.log, self.deadline, self.env = log, time.monotonic() + limit, {}

    def call(self, command: list, what: str, limit: float = 3600, env=None, cwd=None, until=None, codes=(0,)):
        """What `command` said and its errors; any end but one of `codes` is a failure. `until`, asked every few
        milliseconds, may want a SIGTERM. Its output goes to files: a pipe would stay open as long as any of its own
        processes, which end with it, as it has a process group."""
        command, limit = [str(part) for part in command], min(limit, self.deadline - time.monotonic())
        if limit <= 0:
            raise Failure(f"{what}: no time is left")
        env = {**{key: value for key, value in os.environ.items() if not UNSET.match(key)}, **self.env, **(env or {})}
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            begun = time.monotonic()
            try:
                process = subprocess.Popen(command, cwd=cwd, env=env, stdout=out, stderr=err, stdin=subprocess.DEVNULL,
                                           preexec_fn=os.setpgrp)
            except OSError as error:
                raise Failure(f"{what}: cannot start {command[0]}: {error.strerror}") from error
            try:
                while process.poll() is None and time.monotonic() - begun < limit:
                    if until and until():
                        process.terminate()
                        until = None
                    time.sleep(0.005)
                late, took = process.poll() is None, time.monotonic() - begun
            finally:
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            out.seek(0), err.seek(0)
            said, errors = (file.read().decode(errors="replace") for file in (out, err))
        end = f"stopped after {took:.0f} s" if late else f"ended with code {process.returncode}"
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"== {what}: {end}, {took:.1f} s\n$ {shlex.join(command)}\n{said}{errors}\n")
        if late or process.returncode not in codes:
            raise Failure(f"{what} {end}: {' / '.join((errors.strip() or said).splitlines()[-3:])[-500:]}")
        return said, errors

    def json(self, command: list, what: str, limit: float) -> dict:
        """The last line that it printed."""
        return json.loads(self.call(command, what, limit)[0].strip().rpartition("\n")[2])


class Report:
    """Rows and raw figures by part. `file` with .json keeps everything, with .txt the table; None keeps neither.
    Parts that another call has measured stay; where one of `keys` of the machine is another, they are set aside."""

    def __init__(self, file: Path | None, machine: dict, titles: dict[str, str], keys: list[str]):
        self.file, self.machine, self.titles, self.parts, self.unmeasured = file, machine, titles, {}, False
        held = file and file.with_suffix(".json")
        earlier = json.loads(held.read_text()) if held and held.exists() else None
        if earlier and "parts" in earlier and all(earlier["machine"].get(key) == machine[key] for key in keys):
            self.parts = earlier["parts"]
        elif earlier:
            say(f"{held} is of another machine or build: it is {held.rename(held.with_suffix('.old.json'))} now")

    def run(self, name: str, work) -> None:
        """A part, to its end or to what broke it."""
        self.part = {"title": self.titles[name], "seconds": 0.0, "complete": False, "rows": [], "raw": {}}
        self.parts[name], self.begun = self.part, time.monotonic()
        say(f"{name}: {self.titles[name]}")
        self.attempt(self.titles[name], work)
        self.part["complete"] = True
        self.write()

    def attempt(self, name: str, work, *args):
        """What `work` gives; None, and a row that does not hold, where it fails."""
        try:
            return work(*args)
        except Exception as error:  # noqa: BLE001: a program that says other things than it should spoils this alone
            self.unmeasured = True
            self.row(name, str(error) if isinstance(error, Failure) else repr(error), "measured", False)

    def row(self, name: str, found: str, target: str = "", holds: bool | None = None) -> None:
        """`holds` is None for a figure without a target."""
        self.part["rows"].append({"row": name, "found": found, "target": target, "holds": holds})
        say(f"  {name}: {' | '.join(filter(None, [found, target, MARKS[holds]]))}")
        self.write()

    def raw(self, name: str, value):
        self.part["raw"][name] = value
        self.write()
        return value

    def holds(self, names) -> bool:
        """Whether these parts were gone through and all of their targets hold."""
        parts = [self.parts.get(name, {"complete": False}) for name in names]
        return all(part["complete"] and all(row["holds"] is not False for row in part["rows"]) for part in parts)

    def write(self) -> None:
        self.part["seconds"] = round(time.monotonic() - self.begun, 1)
        whole = {"machine": self.machine, "passed": self.holds(self.titles), "parts": self.parts}
        for suffix, text in ((".json", json.dumps(whole, indent=1)), (".txt", self.text())) if self.file else ():
            new = self.file.with_suffix(".new")
            new.write_text(text + "\n", encoding="utf-8")
            os.replace(new, self.file.with_suffix(suffix))

    def text(self) -> str:
        rows = [(name, *row.values()) for name in self.titles for row in self.parts.get(name, {"rows": []})["rows"]]
        table = [["", "", "found", "target", "holds"], *([*cells, MARKS[holds]] for *cells, holds in rows)]
        widths = [min(50, max(map(len, column))) for column in zip(*table)]
        lines = ["| " + " | ".join(f"{cell:{width}}" for cell, width in zip(row, widths)) + " |" for row in table]
        lines.insert(1, "|---" * len(widths) + "|")
        judged = [row[-1] for row in rows if row[-1] is not None]
        missing = [name for name in self.titles if not self.parts.get(name, {"complete": False})["complete"]]
        about = "; ".join(f"{key} {value}" for key, value in self.machine.items() if value)
        end = f"{sum(judged)} of {len(judged)} targets hold; not run to the end: {', '.join(missing) or 'none'}"
        return "\n".join([about, "", *lines, "", end])


class Lab:
    """What both scripts measure with. Each has PARTS, titles by name, and a method part_NAME for each; KEYS, in which
    the machines of one report are the same; and JUDGED, whether its exit code counts targets that are missed."""

    def __init__(self, args, work: Path):
        self.args, self.work, self.run = args, work, Runner(args.log, args.limit)
        self.report = Report(args.file, self.machine(), self.PARTS, self.KEYS)
        self.row, self.raw, self.attempt = self.report.row, self.report.raw, self.report.attempt

    def machine(self) -> dict:
        """What the figures depend on."""
        cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
        name = re.search(r"^model name\s*:\s*(.*)$", cpu, re.MULTILINE)
        version = self.run.call([self.args.program, "--version"], "slt-run")[0].strip()
        vectors = next((word for word in ("avx512f", "avx2") if word in cpu), None)
        found = {"cpu": name.group(1) if name else platform.machine(), "vectors": vectors, "cores": CORES,
                 "system": platform.platform(), "program": version, **self.args.about, **self.peer("about"),
                 "measured": datetime.date.today().isoformat()}
        # There slt-run finds CUDA's libraries, which PyTorch brought, where the loader has none.
        self.run.env["VIRTUAL_ENV"] = found.pop("prefix")
        return found

    def bench(self, *flags: object, limit: float = 3600) -> dict:
        command = [self.args.program, "bench", CONFIG, "--json", "--device", self.args.device, *flags]
        return self.placed(self.run.json(command, f"slt-run bench {shlex.join(map(str, flags))}", limit))

    def peer(self, *command: object, limit: float = 3600) -> dict:
        return self.run.json([self.args.python, PEER, *command], f"PyTorch, {shlex.join(map(str, command))}", limit)

    def train(self, name: str, *flags: object, **how) -> list[dict]:
        """The lines of a run's metrics."""
        folder = self.work / name
        command = [self.args.program, *flags, "--device", self.args.device, "--work-dir", folder, "--quiet"]
        self.run.call(command, name, limit=240, **how)
        self.placed(json.loads((folder / "run.json").read_text()))
        return metrics(folder)

    def waiting(self, name: str, lines: list[dict]) -> None:
        wait, whole = (sum(line[key] for line in lines) for key in ("data_wait_seconds", "seconds"))
        self.row(f"{name}: wait for data", f"{wait / whole:.2%} of {seconds(whole)}", "≤ 2 %", wait <= 0.02 * whole)

    def placed(self, found: dict) -> dict:
        """Without a card that can be used, slt-run warns and goes on on the CPU."""
        if not found.get("device", self.args.device).startswith(self.args.device):
            raise Failure(f"slt-run was to use {self.args.device} and used {found['device']}")
        return found


def parser(doc: str, titles: dict[str, str], default: list[str]) -> argparse.ArgumentParser:
    """The arguments that both scripts take."""

    def parts(text: str) -> list[str]:
        return sorted(text.split(","), key=list(titles).index)

    ap = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    near = ROOT / "shared" if (ROOT / "shared").is_dir() else ROOT.parent / "shared"
    ap.add_argument("--quick", action="store_true", help="less of everything")
    ap.add_argument("--only", metavar="PARTS", dest="parts", type=parts, default=default, help=f"[{','.join(default)}]")
    ap.add_argument("--shared", metavar="DIR", type=Path, default=near, help="has data/lsa_t_mini [%(default)s]")
    ap.add_argument("--python", metavar="PY", default=os.environ.get("PYTHON"), help="which has torch [$PYTHON]")
    return ap


def main(kind, args) -> int:
    """The exit code: 2 where nothing could be measured. What one part cannot measure is a row."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="slt_run_") as work:
            lab = kind(args, Path(work))
            try:
                for name in args.parts:
                    lab.report.run(name, getattr(lab, f"part_{name}"))
            finally:
                print(lab.report.text(), flush=True)
            return int(not lab.report.holds(args.parts) if kind.JUDGED else lab.report.unmeasured)
    except (KeyboardInterrupt, Failure) as end:
        say(f"error: {str(end) or 'stopped; what was measured is kept'}")
        return 2 if isinstance(end, Failure) else 1
