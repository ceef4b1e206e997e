#!/usr/bin/env bash
# Runs a command on an emulated CUDA device, under AddressSanitizer: tests/emulator in the place of the driver and of
# the compiler.
#
#   scripts/emulated.sh target/debug/trainer selfcheck --device cuda
#   scripts/emulated.sh check [CASE]      the emulator's own test
#
# LECTERN_EMULATOR_SEED         the order of blocks and threads; 1337 without
# LECTERN_EMULATOR_FAIL         NAME:COUNT:CODE, the call that fails
# LECTERN_EMULATOR_TRACE        a file that gets what was called and which kernels ran
# LECTERN_EMULATOR_WITHOUT      a function that the driver lacks, or `libcuda` or `libnvrtc`: that library
# LECTERN_EMULATOR_WITH         further libraries that are there: `cublasLt`, `nccl`, or both
# LECTERN_EMULATOR_DEVICES, LECTERN_EMULATOR_CAPABILITY, LECTERN_EMULATOR_DRIVER, LECTERN_EMULATOR_MEMORY
#                               what the device claims to be; 1, 90, 13000, 8 GiB in bytes without
# LECTERN_EMULATOR_EAGER        1 does everything at once, so that a stack shows who asked for it
#
# Exits with the command's code, with 99 when the emulator or the sanitiser found something, and with 69 without g++.
set -euo pipefail
house=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
sources=$house/tests/emulator
target=$(realpath -m "${CARGO_TARGET_DIR:-$house/target}")/emulator
without=${LECTERN_EMULATOR_WITHOUT:-}

command -v g++ >/dev/null || {
    printf 'emulated: g++ is not installed\n' >&2
    exit 69
}
sanitizer=$(g++ -print-file-name=libasan.so)
[ -e "$sanitizer" ] || {
    printf 'emulated: AddressSanitizer of g++ is not installed\n' >&2
    exit 69
}

# Compiles and links everything into folder $1.
build() {
    local flags=(-std=c++17 -O3 -g1 -fPIC -Wall -Wextra -Werror) file
    local link=(-shared "-Wl,-Bsymbolic")
    mkdir -p "$1"
    for file in driver work machine fibre together memory errors faults image nvrtc scan; do
        printf '%s\0' "$file"
    done | xargs -0 -P 2 -I '{}' g++ "${flags[@]}" -DLECTERN_EMULATOR_HOME="\"$sources\"" -c -o "$1/{}.o" "$sources/{}.cpp"
    g++ "${link[@]}" -Wl,-soname,libcuda.so.1 -o "$1/libcuda.so.1" \
        "$1"/{driver,work,machine,fibre,together,memory,errors,faults,image}.o -ldl
    g++ "${link[@]}" -Wl,-soname,libnvrtc.so.13 -o "$1/libnvrtc.so.13" "$1"/{nvrtc,scan,faults,image}.o -ldl
    mkdir -p "$1/cublasLt" "$1/nccl"
    g++ "${flags[@]}" "${link[@]}" -Wl,-soname,libcublasLt.so.13 -o "$1/cublasLt/libcublasLt.so.13" "$sources/cublaslt.cpp" \
        -L"$1" -l:libcuda.so.1
    g++ "${flags[@]}" "${link[@]}" -Wl,-soname,libnccl.so.2 -o "$1/nccl/libnccl.so.2" "$sources/nccl.cpp" -L"$1" -l:libcuda.so.1
    g++ "${flags[@]}" -o "$1/check" "$sources/check.cpp" -L"$1" -l:libcuda.so.1 -l:libnvrtc.so.13
}

mkdir -p "$target"
now=$(cat "$sources"/*.cpp "$sources"/*.hpp "${BASH_SOURCE[0]}" | sha256sum | cut -c 1-16)
libraries=$target/$now
# Those who come at the same time wait for the first.
exec 9>"$target/lock"
flock 9
if [ ! -e "$libraries/built" ]; then
    rm -rf "$libraries"
    build "$libraries" >&2
    touch "$libraries/built"
fi
if [ -n "$without" ] && [ ! -e "$libraries/without-$without/built" ]; then
    lacking=$libraries/without-$without
    mkdir -p "$lacking"
    cp "$libraries"/*.so.* "$lacking"
    case $without in
    libcuda) rm "$lacking/libcuda.so.1" ;;
    libnvrtc) rm "$lacking/libnvrtc.so.13" ;;
    *)
        printf '{ local: %s; };\n' "$without" >"$lacking/hidden"
        g++ -shared -Wl,-Bsymbolic -Wl,-soname,libcuda.so.1 -Wl,--version-script="$lacking/hidden" -o "$lacking/libcuda.so.1" \
            "$libraries"/{driver,work,machine,fibre,together,memory,errors,faults,image}.o -ldl
        g++ -shared -Wl,-Bsymbolic -Wl,-soname,libnvrtc.so.13 -Wl,--version-script="$lacking/hidden" \
            -o "$lacking/libnvrtc.so.13" "$libraries"/{nvrtc,scan,faults,image}.o -ldl
        ;;
    esac
    touch "$lacking/built"
fi
exec 9>&-

paths=$libraries
[ -z "$without" ] || paths=$libraries/without-$without
for library in ${LECTERN_EMULATOR_WITH:-}; do
    paths=$paths:$libraries/$library
done
if [ "${1:-}" = check ]; then
    shift
    set -- "$target/$now/check" "$house/trainer/src/device/kernel.cuh" "$sources/check.cu" "$@"
fi
# Images are made from paths below the target directory, so they are kept there too.
export LECTERN_CACHE=${LECTERN_CACHE:-$target/images}
export LECTERN_EMULATOR_CACHE=${LECTERN_EMULATOR_CACHE:-$target/kernels}
# Nothing of the real machine: what is not here is absent.
export LD_LIBRARY_PATH=$paths
export ASAN_OPTIONS=detect_leaks=0:exitcode=99:allocator_may_return_null=1${ASAN_OPTIONS:+:$ASAN_OPTIONS}
LD_PRELOAD=$sanitizer exec "$@"
