#!/usr/bin/env bash
# Tests and measures a slt-run built with CUDA on a machine with an NVIDIA card, against PyTorch on the same card. Needs
# the folder that scripts/gpu_pack.sh made, this repository's files and a Python 3.9 with torch (and numpy); no network,
# no Rust.
#
#   scripts/gpu_check.sh BIN_DIR [--shared DIR] [--out DIR] [--python PY] [--quick] [--only a,b,e] [--dry]
#
# All the work is in gpu_check.py, whose --help says more. Exit code 0: every target holds; 1: not all; 2: a wrong call.
set -euo pipefail
for python in "${PYTHON:-}" python3 python; do
    if [ -n "$python" ] && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then
        exec "$python" "$(dirname "$0")/gpu_check.py" "$@"
    fi
done
echo "gpu_check.sh: no Python 3.9 or newer here; PYTHON=… names one" >&2
exit 2
