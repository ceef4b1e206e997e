#!/usr/bin/env bash
# What the README says of mixtures of experts, measured here: how even the load of moe-zero's eight experts is over the
# whole validation split, what a step costs beside its dense twin's, and how many experts a text of some length touches.
#
#   scripts/measure_mixtures.sh TEXT        about three minutes; TEXT is TinyShakespeare for the README's figures
set -euo pipefail

if [ $# -ne 1 ] || [ ! -f "$1" ]; then
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
text=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
cd "$(dirname "$0")/.."
cargo build --release --locked
programs=${CARGO_TARGET_DIR:-target}/release
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

train() {
    local out=$folder/$1
    shift
    "$programs/trainer" train --device cpu --data "$text" --out "$out" --sample 0 --eval-every 0 --progress off "$@"
}

balance() {
    local name=$1
    shift
    train "$name" --preset moe-zero --experts 8 --steps 2000 "$@"
    "$programs/trainer" eval --device cpu --model "$folder/$name" --data "$text" --format json | python3 -c '
import json, sys
told = json.load(sys.stdin)
worst = max(layer["max_violation"] for layer in told["experts"])
share = max(max(layer["load"]) for layer in told["experts"])
loss = told["val_loss"]
print(f"{sys.argv[1]:28s} val loss {loss:.4f}   worst MaxVio {worst:.3f}   largest share {share:.3f}")' "$name"
}

balance loss
balance none --balance 0 --router-z 0
balance bias --balance 0 --bias-rate 0.001
balance bias-and-cosine --balance 0 --bias-rate 0.001 --schedule cosine --warmup 50

shape=(--width 384 --layers 6 --heads 6 --block 256 --batch 8 --dropout 0 --secs 10 --format json --device cpu)
for round in 1 2 3; do
    mixture=$("$programs/trainer" bench --preset moe-nano --expert-width 512 "${shape[@]}")
    dense=$("$programs/trainer" bench --preset moe-nano-dense --feed-forward 1024 "${shape[@]}")
    python3 -c '
import json, sys
mixture, dense = (json.loads(text)["step_ms"] for text in sys.argv[2:])
print(f"round {sys.argv[1]}: 8 experts, top-2: {mixture:.0f} ms a step, dense twin {dense:.0f} ms, ratio {mixture / dense:.2f}")
' "$round" "$mixture" "$dense"
done

train touched --preset moe-nano --experts 32 --steps 300
for tokens in 1 2 4 8 16 32 64; do
    "$programs/runtime" generate --model "$folder/touched" --prompt $'\n' -n "$tokens" --seed 1 --stats 2>&1 >/dev/null |
        awk -v tokens="$tokens" '/^experts of layer/ { touched += $5; of += $7 }
            END { printf "%3d tokens: %d of %d experts touched\n", tokens, touched, of }'
done
