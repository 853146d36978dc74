#!/usr/bin/env bash
# Builds slt-run and its tests with CUDA and puts stripped copies into DIR, for scripts/gpu_check.sh on a machine with a
# card: slt-run, unit-tests, suite-tests, and pack.json, which names the commit. All of it is at most 64 MiB, or this
# fails. Needs Rust, a C compiler and strip; no CUDA.
set -euo pipefail
fail() { echo "gpu_pack.sh: $*" >&2; exit 1; }
[ $# -eq 1 ] && [ -n "$1" ] || fail "usage: scripts/gpu_pack.sh DIR"
mkdir -p "$1"
dir=$(cd "$1" && pwd)
cd "$(dirname "$0")/.."
messages=$(cargo build --release --features cuda --bin slt-run --message-format=json-render-diagnostics &&
    cargo test --release --features cuda --lib --test suite --no-run --message-format=json-render-diagnostics)

# What cargo built with a path that ends like $2. Over a program that runs, strip could not write; beside it, it can.
put() {
    path=$(sed -n "s|.*\"executable\":\"\([^\"]*/$2\)\".*|\1|p" <<<"$messages" | tail -n 1)
    [ -n "$path" ] || fail "cargo built no $1"
    "${STRIP:-strip}" -s -o "$dir/.$1.new" "$path"
    mv "$dir/.$1.new" "$dir/$1"
}
put slt-run slt-run
put unit-tests 'deps/slt_run-[0-9a-f]*'
put suite-tests 'deps/suite-[0-9a-f]*'
printf '{"commit": "%s"}\n' "$(git describe --always --dirty --abbrev=12 2>/dev/null || echo unknown)" >"$dir/pack.json"
size=$(cat "$dir/slt-run" "$dir/unit-tests" "$dir/suite-tests" | wc -c)
echo "$dir: $((size >> 20)) MiB of at most 64, $(cat "$dir/pack.json")"
[ "$size" -le $((64 << 20)) ] || fail "more than 64 MiB"
