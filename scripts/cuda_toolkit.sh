#!/bin/sh
# Assembles a CUDA toolkit, for machines without one: the libraries that slt-run opens when a GPU is asked for, and what
# else its makers expect of a toolkit. Building slt-run itself needs none of it.
#
#   eval "$(scripts/cuda_toolkit.sh DIR)" && slt-run …
#   eval "$(scripts/cuda_toolkit.sh DIR)" && cargo build --release --features cuda,candle-cuda      Candle's own CUDA, too
#   eval "$(scripts/cuda_toolkit.sh DIR nvrtc)"      the compiler of kernels alone: 90 MB, enough for the tests
#
# Takes NVIDIA's Python wheels (660 MB to download, 1.3 GB on disk), each checked against the SHA-256 given here, unpacks
# them over one another in DIR and adds what they lack: modes, unversioned library names, and a libcuda to link against,
# whose functions are empty (the real one comes with the driver). On standard output go only the `export` lines,
# everything else on standard error. A second call finds DIR complete and downloads nothing. Needs Python 3 with pip, sh
# and a C compiler.
set -eu

fail() { echo "cuda_toolkit.sh: $*" >&2; exit 1; }

[ $# -ge 1 ] && [ $# -le 2 ] && [ -n "$1" ] && [ "${2:-nvrtc}" = nvrtc ] ||
    fail "usage: eval \"\$(scripts/cuda_toolkit.sh DIR [nvrtc])\""
[ "$(uname -s)-$(uname -m)" = Linux-x86_64 ] || fail "only for Linux on x86-64: install NVIDIA's own toolkit here"

wheels='
nvidia-cublas==13.0.2.14 --hash=sha256:0cf238ffdbe46c00cb9aa98e7bca745c223a5ca5a53e686ac8b3e5a08fe80d6c
nvidia-cuda-cccl==13.0.85 --hash=sha256:e0da7ad981f3a8aff08241b5bfc1af868742a63e2762f53a5171c492ef242649
nvidia-cuda-crt==13.0.88 --hash=sha256:2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4
nvidia-cuda-nvcc==13.0.88 --hash=sha256:56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03
nvidia-cuda-nvrtc==13.0.88 --hash=sha256:ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575
nvidia-cuda-runtime==13.0.96 --hash=sha256:7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548
nvidia-curand==10.4.0.35 --hash=sha256:1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc
nvidia-nvvm==13.0.88 --hash=sha256:c5f41ffeb6466944a026dfa5317d7d85355c119bbec279205d22f1869d1054e0
'
[ $# -eq 1 ] || wheels=$(printf '%s\n' "$wheels" | grep nvrtc)

mkdir -p "$1"
dir=$(cd "$1" && pwd)
home=$dir/cuda
case $dir in *\'*) fail "$dir: a folder without an apostrophe, please" ;; esac

# The list of wheels goes in last: where it is there and the same, so is everything else.
# (`$(…)` drops the last newline, so it is around both.)
if [ "$(cat "$home/wheels.txt" 2>/dev/null || true)" != "$(printf '%s' "$wheels")" ]; then
    python=
    for name in python3 python; do
        if command -v "$name" >/dev/null 2>&1 && "$name" -m pip --version >/dev/null 2>&1; then
            python=$name
            break
        fi
    done
    [ -n "$python" ] || fail "no Python with pip here"
    compiler=${CC:-cc}
    command -v "${compiler%% *}" >/dev/null 2>&1 || fail "no C compiler here ($compiler)"

    new=$(mktemp -d "$dir/partial.XXXXXX")
    trap 'rm -rf "$new"' EXIT
    trap 'exit 1' HUP INT TERM
    printf '%s' "$wheels" >"$new/requirements.txt"
    echo "cuda_toolkit.sh: downloading NVIDIA's wheels to $dir" >&2
    "$python" -m pip download --quiet --no-deps --only-binary=:all: --require-hashes \
        --platform manylinux_2_27_x86_64 --platform manylinux2014_x86_64 --platform manylinux2010_x86_64 \
        --dest "$new/wheels" --requirement "$new/requirements.txt" >&2 ||
        fail "NVIDIA's wheels could not be downloaded"

    "$python" - "$new" >&2 <<'PYTHON' || fail "the wheels could not be unpacked to $dir"
import pathlib, sys, zipfile
new = pathlib.Path(sys.argv[1])
for wheel in sorted((new / "wheels").glob("*.whl")):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(new / "unpacked")
    wheel.unlink()
PYTHON
    cuda=$new/unpacked/nvidia/cu13
    for tool in "$cuda"/bin/* "$cuda"/nvvm/bin/*; do
        [ ! -f "$tool" ] || chmod +x "$tool"
    done
    ln -s lib "$cuda/lib64"
    for file in "$cuda"/lib/lib*.so.*; do
        file=${file##*/}
        name=${file%%.so.*}.so
        [ -e "$cuda/lib/$name" ] || ln -s "$file" "$cuda/lib/$name"
    done
    mkdir "$cuda/lib/stubs"
    # Every function of the driver's header, as a name for the linker: nothing ever runs them.
    [ ! -e "$cuda/include/cuda.h" ] ||
        grep -oE '\bcu[A-Z][A-Za-z0-9_]*' "$cuda/include/cuda.h" | sort -u | sed 's/.*/void &(void) {}/' >"$new/cuda.c"
    [ ! -e "$new/cuda.c" ] ||
        $compiler -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$cuda/lib/stubs/libcuda.so" "$new/cuda.c" >&2 ||
        fail "$compiler cannot make a shared library"
    [ ! -e "$cuda/bin/nvcc" ] || "$cuda/bin/nvcc" --version >&2 || fail "the toolkit's nvcc does not start"
    rm -rf "$home"
    mv "$cuda" "$home"
    printf '%s' "$wheels" >"$home/wheels.txt"
fi

echo "export CUDA_HOME='$home'"
if [ -e "$home/bin/nvcc" ]; then
    echo "export NVCC='$home/bin/nvcc' PATH='$home/bin':\"\$PATH\""
    # What is built with Candle's CUDA is linked to the libraries, and finds them by these as it is linked and as it starts.
    echo "export LIBRARY_PATH='$home/lib:$home/lib/stubs'\${LIBRARY_PATH:+:\$LIBRARY_PATH}"
    echo "export LD_LIBRARY_PATH='$home/lib'\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}"
    # Candle compiles its kernels for one capability, which it asks the GPU for.
    command -v nvidia-smi >/dev/null 2>&1 || echo "export CUDA_COMPUTE_CAP=\${CUDA_COMPUTE_CAP:-80}"
fi
