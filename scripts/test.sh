#!/usr/bin/env bash
# Every check there is, in the order in which they fail soonest; README, CI and you run this one.
#
#   scripts/test.sh            all of them
#   scripts/test.sh PART...    those named, of: tidy lint unit cuda neon docs gates
#
# The part cuda compiles every kernel with NVIDIA's compiler, which scripts/cuda-compiler.sh fetches, and runs every kernel
# on an emulated device under AddressSanitizer, which takes g++. It ends with a line that begins with `kernels:`.
#
# The part neon runs under emulation: `rustup target add aarch64-unknown-linux-gnu`, and Debian's qemu-user and
# gcc-aarch64-linux-gnu. Without them it says that it was skipped.
#
# Tests that want data of ours look for the folder named by LECTERN_DATA and say that they were skipped without it.
set -euo pipefail
cd "$(dirname "$0")/.."

# What embedders of the runtime pay for, and what its users download.
most_crates=36
most_bytes=3000000

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    exit 1
}

# Refuses lines that match pattern $2 in the Rust code under the paths from $3 on; $1 says the rule. Comments may
# speak of what code may not do.
refuse() {
    local rule=$1 pattern=$2 found
    shift 2
    found=$(git ls-files -- "$@" | grep '\.rs$' | xargs grep -nE "$pattern" /dev/null |
        grep -vE '^[^:]+:[0-9]+:[[:space:]]*//' || true)
    [ -z "$found" ] || fail "$rule
$found"
    printf 'holds: %s\n' "$rule"
}

# The plan of the house, as far as a search can see it.
tidy() {
    refuse 'imports point one way: formats knows no other crate' '\b(runtime|trainer)::' formats
    refuse 'imports point one way: the runtime knows no trainer' '\btrainer::' runtime
    refuse 'only the device room speaks to CUDA' '\bcudarc\b' formats runtime tests trainer ':!trainer/src/device*'
    refuse 'unsafe code stays in its four rooms' '\bunsafe[[:space:]]*(\{|fn\b|impl\b|trait\b|extern\b)' '*/src/*' \
        ':!formats/src/checkpoint/map.rs' ':!formats/src/checkpoint/advice.rs' \
        ':!runtime/src/simd*' ':!runtime/src/team*' ':!trainer/src/device*'
}

lint() {
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    if command -v shellcheck >/dev/null; then
        git ls-files -- 'scripts/*.sh' .ci/run | xargs shellcheck
    else
        printf 'skipped: shellcheck is not installed\n'
    fi
}

# What is expected is the processor's: a card of this machine's is not seen.
unit() {
    CUDA_VISIBLE_DEVICES='' cargo test --workspace --locked
}

# Every kernel: compiled for real, and run on the emulated device, where the processor's results are the judge.
cuda() (
    local target compiler='' code=0 said compiled runs why=''
    target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
    if [ -e "$target/cuda-compiler/bin/ptxas" ]; then
        compiler=$target/cuda-compiler
        export LECTERN_CUDA_COMPILER=$compiler
    else
        why='the compiler is not here: scripts/cuda-compiler.sh fetches it'
    fi
    scripts/emulated.sh true || code=$?
    case $code in
    0) export LECTERN_EMULATOR=1 ;;
    69) why=${why:+$why; }'there is no g++ with AddressSanitizer' ;;
    *) fail 'the emulator does not build' ;;
    esac
    if [ -n "${LECTERN_EMULATOR:-}" ]; then
        LECTERN_CACHE=$target/emulator/images cargo test --locked -p trainer --lib \
            --config 'target."cfg(all())".runner = "scripts/emulated.sh"' cuda::tests
    fi
    said=$target/cuda-said
    LD_LIBRARY_PATH=${compiler:+$compiler/lib:}${LD_LIBRARY_PATH:-} \
        cargo test --locked -p tests --test kernels --test emulator --test cuda --test processes -- --nocapture | tee "$said"
    compiled=$(sed -n 's/^.*compiled: //p' "$said")
    runs=$(sed -n 's/^.*host runs: //p' "$said")
    if [ -n "$compiled" ] && [ -n "$runs" ]; then
        printf 'kernels: %s, %s host runs passed\n' "$compiled" "$runs"
    else
        printf 'kernels: skipped: %s%s\n' "$why" "${compiled:+ ($compiled)}${runs:+ ($runs host runs passed)}"
    fi
)

# The routines of aarch64, emulated where the processor is another, and what the trainer builds on them.
neon() {
    local target=aarch64-unknown-linux-gnu tool
    case $(uname -m) in
    aarch64 | arm64)
        printf 'this is such a processor: the part unit runs them\n'
        return
        ;;
    esac
    if [ ! -d "$(rustc --print target-libdir --target "$target")" ]; then
        printf 'skipped: neon: the standard library of %s is not installed\n' "$target"
        return
    fi
    for tool in aarch64-linux-gnu-gcc qemu-aarch64; do
        if ! command -v "$tool" >/dev/null; then
            printf 'skipped: neon: %s is not installed\n' "$tool"
            return
        fi
    done
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc
    export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER='qemu-aarch64 -L /usr/aarch64-linux-gnu'
    cargo clippy --locked --target "$target" -p formats -p runtime -p trainer -- -D warnings
    cargo test --locked --target "$target" -p runtime --lib -- simd:: shortlist:: \
        --skip generation_is_the_same
    cargo test --locked --target "$target" -p trainer --lib -- ops:: \
        --skip gradients_of_long_windows --skip no_cut_of_a_product
}

# Private rooms are documented too: those who read the source are its readers, and links to them must hold.
docs() {
    RUSTDOCFLAGS='-D warnings -A rustdoc::private_intra_doc_links' \
        cargo doc --workspace --no-deps --document-private-items --locked
}

# The promises that are numbers.
gates() {
    local tree crates size
    tree=$(cargo tree --locked -p runtime --no-default-features -e normal --prefix none --format '{p}')
    tree=$(printf '%s\n' "$tree" | awk '{ print $1, $2 }' | sort -u)
    if printf '%s\n' "$tree" | grep -E '^(clap|cudarc|trainer) ' >&2; then
        fail 'the runtime library brings the crate above'
    fi
    crates=$(printf '%s\n' "$tree" | wc -l)
    [ "$crates" -le "$most_crates" ] || fail "the runtime library is $crates crates, of $most_crates allowed
$tree"
    printf 'holds: the runtime library is %d crates, itself included, of %d allowed\n' "$crates" "$most_crates"

    tree=$(cargo tree --locked -p runtime -e normal,build --prefix none --format '{p}')
    if printf '%s\n' "$tree" | grep -E '^(cc|cmake|bindgen) ' >&2; then
        fail 'the runtime needs a C compiler for the crate above'
    fi
    printf 'holds: the runtime builds without a C compiler\n'
    cargo check --locked -p runtime --lib --no-default-features

    cargo build --release --locked -p runtime
    size=$(wc -c <"${CARGO_TARGET_DIR:-target}/release/runtime")
    [ "$size" -lt "$most_bytes" ] || fail "target/release/runtime is $size bytes, of $most_bytes allowed"
    printf 'holds: target/release/runtime is %d bytes, of %d allowed\n' "$size" "$most_bytes"
}

[ $# -gt 0 ] || set -- tidy lint unit cuda neon docs gates
for part in "$@"; do
    case $part in
    tidy | lint | unit | cuda | neon | docs | gates) ;;
    -h | --help)
        sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
        exit 0
        ;;
    *)
        printf 'there is no part %s; there are: tidy lint unit cuda neon docs gates\n' "$part" >&2
        exit 2
        ;;
    esac
done
for part in "$@"; do
    printf '\n==> %s\n' "$part"
    began=$SECONDS
    "$part"
    printf '==> %s took %d s\n' "$part" $((SECONDS - began))
done
