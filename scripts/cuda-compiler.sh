#!/usr/bin/env bash
# Fetches NVIDIA's compiler (NVRTC) and assembler (ptxas) from PyPI into target/cuda-compiler, so that kernels can be
# checked where no CUDA is installed. About 130 MB are fetched and 190 MB kept; nothing is installed.
#
#   scripts/cuda-compiler.sh          prints the folder: lib/libnvrtc.so.13 and bin/ptxas are in it
#
# Exits with 69 where it cannot be had.
set -euo pipefail
cd "$(dirname "$0")/.."
nvrtc=nvidia-cuda-nvrtc==13.0.88
nvcc=nvidia-cuda-nvcc==13.0.88

folder=$(realpath -m "${CARGO_TARGET_DIR:-target}")/cuda-compiler
if [ -e "$folder/bin/ptxas" ] && [ -e "$folder/lib/libnvrtc.so.13" ]; then
    printf '%s\n' "$folder"
    exit 0
fi

unavailable() {
    printf 'cuda-compiler: %s\n' "$1" >&2
    exit 69
}

command -v python3 >/dev/null || unavailable 'python3 with pip is not installed'
fetched=$folder.$$
trap 'rm -rf "$fetched"' EXIT
mkdir -p "$fetched/new/lib" "$fetched/new/bin"
python3 -m pip --disable-pip-version-check download --quiet --no-deps --only-binary=:all: --dest "$fetched" \
    "$nvrtc" "$nvcc" >&2 || unavailable 'PyPI does not give the wheels'
for wheel in "$fetched"/*.whl; do
    python3 -m zipfile -e "$wheel" "$fetched/unpacked"
done
cp "$fetched"/unpacked/nvidia/cu13/lib/libnvrtc{,-builtins}.so.13* "$fetched/new/lib"
cp "$fetched/unpacked/nvidia/cu13/bin/ptxas" "$fetched/new/bin"
chmod +x "$fetched/new/bin/ptxas"
rm -rf "$folder"
mv "$fetched/new" "$folder"
printf '%s\n' "$folder"
