#!/usr/bin/env bash
# Builds slt-run and its tests with CUDA and puts stripped copies into DIR, for scripts/gpu_check.sh on a machine with a
# card: slt-run, unit-tests, suite-tests, and pack.json, which names the commit. All of it is at most 64 MiB, or this
# fails. Needs Rust, a C compiler, Python 3 and strip; no CUDA.
#
#   scripts/gpu_pack.sh DIR
set -euo pipefail

fail() { echo "gpu_pack.sh: $*" >&2; exit 1; }

[ $# -eq 1 ] && [ -n "$1" ] || fail "usage: scripts/gpu_pack.sh DIR"
mkdir -p "$1"
dir=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."

messages=$(mktemp)
trap 'rm -f "$messages"' EXIT
echo "gpu_pack.sh: building slt-run and its tests with CUDA" >&2
cargo build --release --features cuda --bin slt-run --message-format=json-render-diagnostics >"$messages"
cargo test --release --features cuda --lib --test suite --no-run --message-format=json-render-diagnostics >>"$messages"

python3 - "$messages" "$dir" "${STRIP:-strip}" "$(git describe --always --dirty --abbrev=12 2>/dev/null || echo unknown)" <<'PYTHON'
"""Picks the programs out of cargo's messages, strips copies of them and describes them."""
import datetime, json, os, pathlib, platform, subprocess, sys

MOST = 64 * 2**20

def programs(messages):
    """Paths by name; a later message stands for the newer build."""
    found = {}
    for line in messages.read_text().splitlines():
        message = json.loads(line) if line.startswith("{") else {}
        path, target = message.get("executable"), message.get("target", {})
        if message.get("reason") != "compiler-artifact" or not path:
            continue
        test = message["profile"]["test"]
        if test and target["kind"] == ["test"] and target["name"] == "suite":
            found["suite-tests"] = pathlib.Path(path)
        elif test and "lib" in target["kind"]:
            found["unit-tests"] = pathlib.Path(path)
        elif not test and target["kind"] == ["bin"] and target["name"] == "slt-run":
            found["slt-run"] = pathlib.Path(path)
    return found

messages, folder, strip, commit = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), sys.argv[3], sys.argv[4]
found = programs(messages)
lacking = {"slt-run", "unit-tests", "suite-tests"} - found.keys()
if lacking:
    sys.exit(f"gpu_pack.sh: cargo built no {', '.join(sorted(lacking))}")
sizes = {}
for name, path in sorted(found.items()):
    # Over a program that runs, strip could not write; beside it, it can.
    new = folder / f".{name}.new"
    subprocess.run([strip, "-s", "-o", new, path], check=True)
    os.replace(new, folder / name)
    sizes[name] = (folder / name).stat().st_size
about = {"commit": commit, "built": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
         "machine": platform.machine(), "libc": " ".join(platform.libc_ver()), "sizes": sizes}
text = json.dumps(about, indent=1) + "\n"
(folder / "pack.json").write_text(text)
total = sum(sizes.values()) + len(text)
listed = ", ".join(f"{name} {size / 2**20:.1f}" for name, size in sizes.items())
if total > MOST:
    sys.exit(f"gpu_pack.sh: {total / 2**20:.1f} MiB are more than {MOST >> 20} MiB: {listed}")
print(f"{folder}: {total / 2**20:.1f} MiB of at most {MOST >> 20} ({listed}), commit {commit}")
PYTHON
