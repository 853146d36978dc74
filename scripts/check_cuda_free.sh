#!/usr/bin/env bash
# Checks that a slt-run needs none of CUDA's libraries to start; built "without" CUDA, that it has no trace of it.
#
#   scripts/check_cuda_free.sh PROGRAM with|without
set -euo pipefail

program=$1
needed=$(ldd "$program")
if grep -Ei 'lib(cuda|cudart|cublas|cublasLt|curand|nvrtc)\.' <<<"$needed"; then
    echo "$program needs these to start" >&2
    exit 1
fi
traces=$(grep -acE 'cuInit|cublasCreate|libcuda\.so|libnvrtc' "$program" || true)
case $2 in
with) [ "$traces" -gt 0 ] || { echo "$program was built without CUDA" >&2; exit 1; } ;;
without)
    [ "$traces" -eq 0 ] || { echo "$program has traces of CUDA" >&2; exit 1; }
    if cargo tree --edges normal,build --prefix none | grep -E '^(cudarc|libloading|candle-kernels) '; then
        echo "the build without CUDA depends on these" >&2
        exit 1
    fi
    ;;
*) echo "usage: $0 PROGRAM with|without" >&2; exit 1 ;;
esac
"$program" --version
