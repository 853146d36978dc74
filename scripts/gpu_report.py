"""What gpu_check.py found: a JSON file that is whole after every single result, and a table to read."""
from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Report:
    """Rows and raw figures by part; parts that another call measured on the same card and build stay."""

    def __init__(self, folder: Path, machine: dict, titles: dict[str, str]):
        self.folder, self.machine, self.titles = folder, machine, titles
        self.parts: dict[str, dict] = self.earlier()
        self.part: dict = {}
        self.begun = 0.0

    def path(self, kind: str) -> Path:
        return self.folder / f"gpu_check.{kind}"

    def earlier(self) -> dict[str, dict]:
        """The parts of an earlier call. Results of another card or build are set aside, not mixed in."""
        path = self.path("json")
        if not path.exists():
            return {}
        try:
            held = json.loads(path.read_text(encoding="utf-8"))
            same = all(held["machine"].get(key) == self.machine.get(key) for key in ("gpu", "commit", "dry"))
            parts = {name: held["parts"][name] for name in self.titles if name in held["parts"]}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            same, parts = False, {}
        if same:
            return parts
        aside = self.folder / "gpu_check.old.json"
        os.replace(path, aside)
        say(f"{path} is of another card or build: it is {aside} now")
        return {}

    def start(self, name: str) -> None:
        self.part = {"title": self.titles[name], "complete": False, "seconds": 0.0, "rows": [], "raw": {}}
        self.parts[name] = self.part
        self.begun = time.monotonic()
        say(f"{name}: {self.titles[name]}")
        self.write()

    def finish(self) -> None:
        self.part["complete"] = True
        self.write()

    def row(self, name: str, found: str, target: str = "", holds: bool | None = None) -> None:
        """`holds` is None for a figure without a target."""
        self.part["rows"].append({"row": name, "found": found, "target": target, "holds": holds})
        mark = {True: "yes", False: "NO", None: "-"}[holds]
        say(f"  {name}: {found}" + (f" | {target} | {mark}" if target or holds is not None else ""))
        self.write()

    def failed(self, name: str, why: object) -> None:
        self.row(name, str(why), "measured", False)

    def raw(self, name: str, value: object) -> None:
        self.part["raw"][name] = value
        self.write()

    def figure(self, part: str, name: str) -> object:
        """A raw figure of this or an earlier call."""
        return self.parts.get(part, {}).get("raw", {}).get(name)

    def holds(self, names: list[str]) -> bool:
        """Whether these parts were gone through and all of their targets hold."""
        return all(name in self.parts and self.parts[name]["complete"]
                   and all(row["holds"] is not False for row in self.parts[name]["rows"]) for name in names)

    def write(self) -> None:
        if self.part:
            self.part["seconds"] = round(time.monotonic() - self.begun, 1)
        parts = {name: self.parts[name] for name in self.titles if name in self.parts}
        whole = {"machine": self.machine, "passed": self.holds(list(self.titles)), "parts": parts}
        for kind, text in (("json", json.dumps(whole, indent=1) + "\n"), ("txt", self.text())):
            new = self.folder / f".gpu_check.{kind}.new"
            new.write_text(text, encoding="utf-8")
            os.replace(new, self.path(kind))

    def text(self) -> str:
        lines = [f"{key.replace('_', ' ')}: {value}" for key, value in self.machine.items() if value not in (None, "", [])]
        for name in self.titles:
            part = self.parts.get(name)
            if part is None:
                lines += ["", f"{name}  {self.titles[name]}: not run"]
                continue
            broken = "" if part["complete"] else ", BROKEN OFF"
            lines += ["", f"{name}  {part['title']} ({part['seconds']:.0f} s{broken})"]
            width = max((len(row["row"]) for row in part["rows"]), default=0)
            found = max((len(row["found"]) for row in part["rows"] if len(row["found"]) <= 48), default=0)
            for row in part["rows"]:
                mark = {True: "yes", False: "NO ", None: "   "}[row["holds"]]
                lines.append(f"   {mark}  {row['row']:{width}}  {row['found']:{found}}  {row['target']}".rstrip())
        rows = [row for part in self.parts.values() for row in part["rows"] if row["holds"] is not None]
        held = sum(row["holds"] for row in rows)
        missing = [name for name in self.titles if not self.parts.get(name, {}).get("complete")]
        lines += ["", f"{held} of {len(rows)} targets hold" + (f"; not run to the end: {', '.join(missing)}" if missing else "")]
        return "\n".join(lines) + "\n"
