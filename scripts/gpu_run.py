"""Starting programs with a time limit, for gpu_check.py: nothing is left running, nothing waits for ever, all is logged."""
from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path


class Failure(Exception):
    """Why something could not be measured; its text goes into the table."""


@dataclass
class Done:
    code: int
    stdout: str
    stderr: str
    seconds: float

    def end(self) -> str:
        return f"killed by signal {-self.code}" if self.code < 0 else f"ended with code {self.code}"

    def last_words(self, lines: int = 3) -> str:
        """The end of what it said, on one line."""
        said = [line.strip() for line in (self.stderr.strip() or self.stdout.strip()).splitlines() if line.strip()]
        return " / ".join(said[-lines:])[-500:]


class Runner:
    """Runs one program at a time, in `folder`, each until its own limit or `deadline`, whichever is first."""

    def __init__(self, folder: Path, log: Path, limit: float):
        self.folder, self.log = folder, log
        self.deadline = time.monotonic() + limit
        self.extra: dict[str, str] = {}
        self.process: subprocess.Popen | None = None

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def environment(self, more: dict[str, str]) -> dict[str, str]:
        """Without settings for slt-run, which would change what is measured."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith("SLT_") and k != "RAYON_NUM_THREADS"}
        return {**kept, **self.extra, **more}

    def call(self, command: list, what: str, limit: float, env: dict[str, str] | None = None, until=None) -> Done:
        """Runs `command` to its end. `until`, called every few milliseconds, may ask for a SIGTERM by returning true.

        Its output goes to files: a pipe would stay open as long as any of its own processes. It gets a process group, so
        that all of them can be ended, but no session, which would outlive a killed caller.
        """
        command = [str(part) for part in command]
        limit = min(limit, self.left())
        if limit <= 1:
            raise Failure(f"{what}: no time is left")
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            begun = time.monotonic()
            try:
                self.process = subprocess.Popen(command, cwd=self.folder, env=self.environment(env or {}), stdout=out,
                                                stderr=err, stdin=subprocess.DEVNULL, preexec_fn=os.setpgrp)
            except OSError as error:
                raise Failure(f"{what}: cannot start {command[0]}: {error.strerror or error}") from error
            late = False
            try:
                while not self.ended():
                    if time.monotonic() - begun > limit:
                        late = True
                        break
                    if until and until():
                        os.kill(self.process.pid, signal.SIGTERM)
                        until = None
                    time.sleep(0.005)
            finally:
                self.stop()
            took = time.monotonic() - begun
            texts = []
            for file in (out, err):
                file.seek(0)
                texts.append(file.read().decode(errors="replace"))
            done = Done(self.process.returncode, *texts, took)
        self.note(command, what, done, late)
        if late:
            raise Failure(f"{what}: stopped after {took:.0f} s" + (f": {done.last_words()}" if done.last_words() else ""))
        return done

    def ended(self) -> bool:
        """Leaves the process to be waited for: until then nobody else gets its number."""
        return os.waitid(os.P_PID, self.process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def stop(self) -> None:
        """Ends the program, where it still runs, and what it started."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
        self.process.wait()

    def note(self, command: list[str], what: str, done: Done, late: bool) -> None:
        """Everything said goes to the log, but for the middle of long texts."""
        def shortened(text: str) -> str:
            return text if len(text) < 20_000 else f"{text[:8_000]}\n[…]\n{text[-10_000:]}"

        end = "stopped for its time" if late else f"code {done.code}"
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"== {what}: {end}, {done.seconds:.1f} s\n$ {shlex.join(command)}\n"
                      f"{shortened(done.stdout)}{shortened(done.stderr)}\n")

    def ok(self, command: list, what: str, limit: float, **more) -> Done:
        done = self.call(command, what, limit, **more)
        if done.code != 0:
            raise Failure(f"{what} {done.end()}: {done.last_words()}")
        return done

    def json(self, command: list, what: str, limit: float, **more) -> dict:
        """The last line that it printed."""
        done = self.ok(command, what, limit, **more)
        try:
            found = json.loads(done.stdout.strip().splitlines()[-1])
        except (IndexError, json.JSONDecodeError) as error:
            raise Failure(f"{what}: expected a line of JSON, got {done.stdout[-200:]!r}") from error
        if not isinstance(found, dict):
            raise Failure(f"{what}: expected a JSON object, got {done.stdout[-200:]!r}")
        return found
