"""The one way in which gpu_check.py runs programs, reports and fails: each program has a time limit, everything is logged,
every single result is on the disk at once, and what cannot be measured is a row of the table."""
from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# The loader's names, by the major versions that slt-run takes.
LIBRARIES = [[f"lib{name}.so.{major}" for major in (13, 12)] for name in ("cublas", "cublasLt", "nvrtc")]
MISSING = """import ctypes, json, sys
def found(name):
    try:
        return bool(ctypes.CDLL(name))
    except OSError:
        return False
print(json.dumps({"missing": [names[0] for names in json.loads(sys.argv[1]) if not any(map(found, names))]}))"""


class Failure(Exception):
    """Why something could not be measured; its text goes into the table."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Runner:
    """Runs one program at a time, in `folder`, each until its own limit or the whole's, whichever is first."""

    def __init__(self, folder: Path, log: Path, limit: float):
        self.folder, self.log, self.deadline = folder, log, time.monotonic() + limit
        self.extra: dict[str, str] = {}

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def call(self, command: list, what: str, limit: float, env=None, until=None, codes=(0,)) -> subprocess.CompletedProcess:
        """What `command` said; any other end than one of `codes` is a failure (None: any will do). `until`, asked every few
        milliseconds, may want a SIGTERM.

        Its output goes to files: a pipe would stay open as long as any of its own processes. It gets a process group, so
        that all of them can be ended, but no session, which would outlive a killed caller. Settings for slt-run would change
        what is measured.
        """
        command, limit = [str(part) for part in command], min(limit, self.left())
        if limit <= 1:
            raise Failure(f"{what}: no time is left")
        kept = {k: v for k, v in os.environ.items() if not k.startswith("SLT_") and k != "RAYON_NUM_THREADS"}
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            begun = time.monotonic()
            try:
                process = subprocess.Popen(command, cwd=self.folder, env={**kept, **self.extra, **(env or {})}, stdout=out,
                                           stderr=err, stdin=subprocess.DEVNULL, preexec_fn=os.setpgrp)
            except OSError as error:
                raise Failure(f"{what}: cannot start {command[0]}: {error.strerror or error}") from error
            try:
                # Not waited for before the end: until then nobody else gets its number.
                while not os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                    if time.monotonic() - begun > limit:
                        break
                    if until and until():
                        os.kill(process.pid, signal.SIGTERM)
                        until = None
                    time.sleep(0.005)
                late = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
            finally:
                try:
                    os.killpg(process.pid, signal.SIGKILL)
                except (ProcessLookupError, PermissionError):
                    pass
                process.wait()
            out.seek(0), err.seek(0)
            texts = [file.read().decode(errors="replace") for file in (out, err)]
        done = subprocess.CompletedProcess(command, process.returncode, *texts)
        done.seconds = time.monotonic() - begun
        end = f"stopped after {done.seconds:.0f} s" if late else ended(done)
        shown = "".join(text if len(text) < 20_000 else f"{text[:8_000]}\n[…]\n{text[-10_000:]}" for text in texts)
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"== {what}: {end}, {done.seconds:.1f} s\n$ {shlex.join(command)}\n{shown}\n")
        if late or codes and done.returncode not in codes:
            raise Failure(f"{what} {end}: {last_words(done)}")
        return done

    def json(self, command: list, what: str, limit: float, **more) -> dict:
        """The last line that it printed."""
        said = self.call(command, what, limit, **more).stdout
        try:
            found = json.loads(said.strip().splitlines()[-1])
        except (IndexError, json.JSONDecodeError) as error:
            raise Failure(f"{what}: expected a line of JSON, got {said[-200:]!r}") from error
        if not isinstance(found, dict):
            raise Failure(f"{what}: expected a JSON object, got {said[-200:]!r}")
        return found


def ended(done: subprocess.CompletedProcess) -> str:
    code = done.returncode
    return f"killed by signal {-code}" if code < 0 else f"ended with code {code}"


def last_words(done: subprocess.CompletedProcess, lines: int = 3) -> str:
    """The end of what it said, on one line."""
    said = [line.strip() for line in (done.stderr.strip() or done.stdout.strip()).splitlines() if line.strip()]
    return " / ".join(said[-lines:])[-500:]


class Report:
    """Rows and raw figures by part; parts that another call measured on the same card and build stay."""

    def __init__(self, folder: Path, machine: dict, titles: dict[str, str]):
        self.folder, self.machine, self.titles = folder, machine, titles
        self.part: dict = {}
        self.parts: dict[str, dict] = self.earlier()

    def earlier(self) -> dict[str, dict]:
        """The parts of an earlier call. Results of another card or build are set aside, not mixed in."""
        path = self.folder / "gpu_check.json"
        if not path.exists():
            return {}
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            if all(held["machine"].get(key) == self.machine.get(key) for key in ("gpu", "commit", "dry")):
                return {name: part for name, part in held["parts"].items() if name in self.titles}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        aside = self.folder / "gpu_check.old.json"
        os.replace(path, aside)
        say(f"{path} is of another card or build: it is {aside} now")
        return {}

    def run(self, name: str, work) -> None:
        """A part, to its end or to what broke it: a program that says other things than it should spoils its own part."""
        self.part = {"title": self.titles[name], "complete": False, "seconds": 0.0, "rows": [], "raw": {}}
        self.parts[name], self.begun = self.part, time.monotonic()
        say(f"{name}: {self.titles[name]}")
        self.attempt(self.titles[name], work, (OSError, KeyError, TypeError, ValueError, IndexError, AttributeError,
                                               ZeroDivisionError))
        self.part["complete"] = True
        self.write()

    def attempt(self, name: str, work, others: tuple = ()):
        """What `work` gives; None, and a row that does not hold, where it fails."""
        try:
            return work()
        except (Failure, *others) as error:
            why = error if isinstance(error, Failure) else f"{type(error).__name__}: {error}"
            self.row(name, str(why), "measured", False)

    def row(self, name: str, found: str, target: str = "", holds: bool | None = None) -> None:
        """`holds` is None for a figure without a target."""
        self.part["rows"].append({"row": name, "found": found, "target": target, "holds": holds})
        mark = {True: "yes", False: "NO", None: "-"}[holds]
        say(f"  {name}: {found}" + (f" | {target} | {mark}" if target or holds is not None else ""))
        self.write()

    def raw(self, name: str, value: object) -> object:
        self.part["raw"][name] = value
        self.write()
        return value

    def figure(self, part: str, name: str) -> object:
        """A raw figure of this or an earlier call."""
        return self.parts.get(part, {}).get("raw", {}).get(name)

    def holds(self, names) -> bool:
        """Whether these parts were gone through and all of their targets hold."""
        parts = [self.parts.get(name, {"complete": False}) for name in names]
        return all(part["complete"] and all(row["holds"] is not False for row in part["rows"]) for part in parts)

    def write(self) -> None:
        self.part["seconds"] = round(time.monotonic() - self.begun, 1)
        parts = {name: self.parts[name] for name in self.titles if name in self.parts}
        whole = {"machine": self.machine, "passed": self.holds(self.titles), "parts": parts}
        for kind, text in (("json", json.dumps(whole, indent=1) + "\n"), ("txt", self.text())):
            new = self.folder / f".gpu_check.{kind}.new"
            new.write_text(text, encoding="utf-8")
            os.replace(new, self.folder / f"gpu_check.{kind}")

    def text(self) -> str:
        lines = [f"{key.replace('_', ' ')}: {value}" for key, value in self.machine.items() if value not in (None, "", [])]
        for name, title in self.titles.items():
            part = self.parts.get(name)
            if part is None:
                lines += ["", f"{name}  {title}: not run"]
                continue
            rows = part["rows"]
            lines += ["", f"{name}  {title} ({part['seconds']:.0f} s{'' if part['complete'] else ', BROKEN OFF'})"]
            width = max((len(row["row"]) for row in rows), default=0)
            found = max((len(row["found"]) for row in rows if len(row["found"]) <= 48), default=0)
            for row in rows:
                mark = {True: "yes", False: "NO ", None: "   "}[row["holds"]]
                lines.append(f"   {mark}  {row['row']:{width}}  {row['found']:{found}}  {row['target']}".rstrip())
        judged = [row["holds"] for part in self.parts.values() for row in part["rows"] if row["holds"] is not None]
        missing = [name for name in self.titles if not self.parts.get(name, {}).get("complete")]
        lines += ["", f"{sum(judged)} of {len(judged)} targets hold"
                  + (f"; not run to the end: {', '.join(missing)}" if missing else "")]
        return "\n".join(lines) + "\n"


def libraries(run: Runner, folders: list[str]) -> str:
    """Adds torch's own libraries to the loader's path where the loader lacks any; what was done, in words."""
    def missing() -> list[str]:
        command = [sys.executable, "-c", MISSING, json.dumps(LIBRARIES)]
        return run.json(command, "looking for CUDA's libraries", 60)["missing"]

    lacking = missing()
    if not lacking:
        return "the loader's"
    run.extra["LD_LIBRARY_PATH"] = ":".join([*filter(None, [os.environ.get("LD_LIBRARY_PATH")]), *folders])
    still = missing()
    if still:
        return f"NOT FOUND: {', '.join(still)}, neither by the loader nor in NVIDIA's wheels"
    return f"NVIDIA's wheels ({', '.join(lacking)} not found by the loader)"


def machine(run: Runner, program: Path, python: str, peer: Path, pack: dict, dry: bool) -> dict:
    """What the figures depend on. Sets up the loader's path on the way."""
    torch = run.json([python, peer, "about"], "looking at PyTorch", 120)
    keys = {"gpu": "name", "driver": "driver_version", "gpu_memory": "memory.total", "power_limit": "power.limit",
            "clock_sm_max": "clocks.max.sm", "clock_memory_max": "clocks.max.memory"}
    try:
        query = ["nvidia-smi", f"--query-gpu={','.join(keys.values())}", "--format=csv,noheader"]
        values = run.call(query, "nvidia-smi", 30).stdout.strip().splitlines()[0].split(",")
    except (Failure, IndexError) as failure:
        say(f"nvidia-smi says nothing: {failure}")
        values = []
    card = dict(zip(keys, map(str.strip, values)))
    cpu = re.search(r"^model name\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    version = run.call([program, "--version"], "slt-run", 60).stdout.split()
    return {
        **card, "gpu": card.get("gpu") or torch["device"] or "none", "capability": torch["capability"],
        "cpu": cpu.group(1).strip() if cpu else os.uname().machine, "cores": len(os.sched_getaffinity(0)),
        "system": f"{os.uname().sysname} {os.uname().release}", "slt_run": version[-1] if version else "unknown",
        "commit": pack.get("commit", "unknown"), "torch": f"{torch['torch']} (CUDA {torch['torch_cuda']})",
        "python": torch["python"], "cuda_libraries": "not looked for" if dry else libraries(run, torch["libraries"]), "dry": dry,
    }
