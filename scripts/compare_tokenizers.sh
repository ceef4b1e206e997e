#!/usr/bin/env bash
# Learning a byte-level vocabulary and encoding with GPT-2's, ours and the field's in turn on one machine: what each took
# and the ratios. Needs python3 with tokenizers and tiktoken.
#
#   scripts/compare_tokenizers.sh TEXT GPT2 [ROUNDS]        GPT2 is a folder with encoder.json and vocab.bpe; 5 rounds
#
# VOCABULARY (1024) is what is learned. Our learning is timed from outside, with reading and writing; that of Hugging Face's
# tokenizers inside its process, which starts slowly. Encoding is on one thread, from text in memory to ids in memory.
set -euo pipefail

if [ $# -lt 2 ] || [ $# -gt 3 ] || [ ! -f "$1" ] || [ ! -f "$2/vocab.bpe" ]; then
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
text=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
gpt2=$(cd "$2" && pwd)
rounds=${3:-5}
vocabulary=${VOCABULARY:-1024}
cd "$(dirname "$0")/.."
built=${CARGO_TARGET_DIR:-target}/release
cargo build --release --locked -p trainer
cargo build --release --locked -p formats --example encode

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
TIMEFORMAT=%R
for round in $(seq "$rounds"); do
    printf 'round %d of %d\n' "$round" "$rounds" >&2
    {
        time "$built/trainer" tokenizer train --vocab "$vocabulary" --no-special --data "$text" \
            --out "$folder/ours.json" 2>/dev/null
    } 2>>"$folder/learning"
    python3 scripts/peers/hf_tokenizer.py "$text" "$vocabulary" "$folder/theirs.json" >>"$folder/hf"
    "$built/examples/encode" "$gpt2" "$text" 3 >>"$folder/encoding"
    python3 scripts/peers/tiktoken_encode.py speed "$gpt2" "$text" 3 >>"$folder/tiktoken"
done

python3 - "$folder" <<'PYTHON'
import json, statistics, sys
from pathlib import Path

folder = Path(sys.argv[1])
rows = lambda name: [json.loads(line) for line in (folder / name).read_text().splitlines()]
merges = lambda name: [m if isinstance(m, list) else m.split(" ") for m in json.loads((folder / name).read_text())["model"]["merges"]]
if merges("ours.json") != merges("theirs.json"):
    sys.exit("the merges differ")
hf, tiktoken, encoding = rows("hf"), rows("tiktoken"), rows("encoding")
if {row["tokens"] for row in encoding} != {row["tokens"] for row in tiktoken}:
    sys.exit("the numbers of tokens differ")
median = lambda rows: statistics.median(row["seconds"] for row in rows)
ours, theirs = statistics.median(float(line) for line in (folder / "learning").read_text().split()), median(hf)
print(f"learning {len(merges('ours.json'))} merges, equal: lectern {ours:.3f} s, {hf[0]['engine']} {theirs:.3f} s: {theirs / ours:.1f} times as fast")
ours, theirs = median(encoding), median(tiktoken)
print(f"encoding {encoding[0]['tokens']} tokens: lectern {ours * 1e3:.1f} ms, {tiktoken[0]['engine']} {theirs * 1e3:.1f} ms: {theirs / ours:.1f} times as fast")
PYTHON
