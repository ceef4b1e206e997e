#!/usr/bin/env bash
# From a fresh clone to text that a model of your own wrote: build, get a text, train for about a minute, generate.
#
#   scripts/quickstart.sh [TEXT]
#
# TEXT is a file of yours to learn from. Without one it is TinyShakespeare, downloaded and checked; without a network
# it is this repository's own source and documents. Needs Rust and nothing else. What it makes lies in
# runs/quickstart and data/; the run of an earlier quickstart is replaced.
set -euo pipefail

url=https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt
digest=86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed
seconds=20

say() { printf '\n==> %s\n' "$*" >&2; }
fail() {
    printf '%s\nusage: scripts/quickstart.sh [TEXT]\n' "$*" >&2
    exit 2
}
have() { command -v "$1" >/dev/null 2>&1; }

# Whether file $1 is the text we know. Without a tool that can tell, it is not.
known() {
    local found=
    if have sha256sum; then
        found=$(sha256sum <"$1")
    elif have shasum; then
        found=$(shasum -a 256 <"$1")
    elif have openssl; then
        found=$(openssl dgst -sha256 -r <"$1")
    else
        say 'there is no sha256sum, shasum or openssl to check a download with'
    fi
    [ "${found%% *}" = "$digest" ]
}

# Downloads into $1, in the time given for it or not at all.
download() {
    if have curl; then
        curl --fail --silent --show-error --location --max-time "$seconds" --output "$1" "$url"
    elif have wget && have timeout; then
        # wget limits each read and never the whole.
        timeout "$seconds" wget --quiet --tries=1 --output-document="$1" "$url"
    else
        say 'there is no curl (nor wget with timeout) to download with'
        return 1
    fi
}

# This repository's own source and documents, as one text.
own_text() {
    find . \( -path ./target -o -path ./runs -o -path ./data -o -path './.?*' \) -prune -o -type f \
        \( -name '*.rs' -o -name '*.md' -o -name '*.sh' -o -name '*.py' -o -name '*.toml' \) -print0 |
        LC_ALL=C sort -z | xargs -0 cat
}

case "${1-}" in
-h | --help)
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
-*) fail "there is no option $1" ;;
esac
[ $# -le 1 ] || fail 'one text at most'
text=
if [ $# -eq 1 ]; then
    [ -f "$1" ] || fail "$1 is not a file"
    text=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
fi

cd "$(dirname "$0")/.."
bin=${CARGO_TARGET_DIR:-target}/release
run=runs/quickstart

have cargo || fail 'Rust is missing: https://rustup.rs says how to get it'
say 'building (a few minutes the first time)'
cargo build --release --locked

if [ -n "$text" ]; then
    say "learning from $text"
else
    mkdir -p data
    text=data/tinyshakespeare.txt
    if [ -f "$text" ] && known "$text"; then
        say "learning from TinyShakespeare, which is already in $text"
    elif say "downloading TinyShakespeare ($seconds seconds at most)" && download "$text.tmp" && known "$text.tmp"; then
        mv "$text.tmp" "$text"
        say "learning from TinyShakespeare, now in $text"
    else
        rm -f "$text.tmp"
        text=data/own.txt
        own_text >"$text"
        say "TinyShakespeare cannot be had: learning from this repository's own source and documents, now in $text"
    fi
fi

say "training a small GPT for about a minute ($run)"
rm -rf "$run"
"$bin/trainer" train --preset nano-cpu --device cpu --data "$text" --out "$run"

say "generating: $bin/runtime generate --model $run -n 500"
"$bin/runtime" generate --model "$run" -n 500

say "done. The curves are in $run/report.html; more text, of any length:"
printf '    %s generate --model %s -n 1000 --seed 7\n' "$bin/runtime" "$run" >&2
