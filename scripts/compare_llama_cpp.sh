#!/usr/bin/env bash
# Small models of every shape that llama.cpp knows, with every kind of tokenizer, written as GGUF: llama.cpp must cut a
# text into our ids and compute our exact loss, to half a percent. Needs python3 with numpy and llama-cpp-python; the
# models of byte pairs need torch, transformers and tokenizers as well, and are skipped without.
#
#   scripts/compare_llama_cpp.sh TEXT [DTYPE]        DTYPE is f16 unless given
#
# Models of characters and bytes are trained for STEPS (100) steps; those of byte pairs have random weights.
set -euo pipefail

if [ $# -lt 1 ] || [ $# -gt 2 ] || [ ! -f "$1" ]; then
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
text=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
dtype=${2:-f16}
steps=${STEPS:-100}
cd "$(dirname "$0")/.."
binaries=${CARGO_TARGET_DIR:-target}/release
cargo build --release --locked --quiet

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
failed=0

# Where text is cut and counted: a beginning of the text in whole characters.
python3 - "$text" "$folder/part.txt" <<'PYTHON'
import sys

with open(sys.argv[1], "rb") as text, open(sys.argv[2], "wb") as part:
    part.write(text.read(20000).decode(errors="ignore").encode())
PYTHON

# Exports the model in $folder/$1 and compares.
compare() {
    local name=$1 model=$folder/$1
    "$binaries/trainer" export --model "$model" --to gguf --dtype "$dtype" --out "$model.gguf" 2>"$model.told"
    "$binaries/trainer" eval --device cpu --model "$model" --data "$text" --format json >"$model.ours"
    "$binaries/runtime" score --model "$model" --file "$folder/part.txt" --format json >"$model.part"
    python3 scripts/peers/llama_cpp_loss.py "$model.gguf" "$text" >"$model.theirs"
    python3 scripts/peers/llama_cpp_loss.py "$model.gguf" "$folder/part.txt" --ids >"$model.ids"
    python3 - "$name" "$model" <<'PYTHON' || failed=1
import json
import sys

name, model = sys.argv[1:]
ours, theirs, part, ids = (json.load(open(f"{model}.{kind}")) for kind in ("ours", "theirs", "part", "ids"))
mine, his = ours["val_loss"], theirs["loss"]
apart, same = abs(his / mine - 1), part["ids"] == ids["ids"]
print(f"{name:24s} ours {mine:.5f}  llama.cpp {his:.5f}  {100 * apart:.4f} % apart  {theirs['predicted']} tokens  ids "
      f"{'equal' if same else 'DIFFER'}")
sys.exit(not (same and apart <= 0.005))
PYTHON
}

train() {
    local name=$1
    shift
    "$binaries/trainer" train --device cpu --steps "$steps" --eval-every 0 --sample 0 --progress off --data "$text" \
        --out "$folder/$name" "$@" 2>/dev/null
    compare "$name"
}

for tokenizer in characters bytes; do
    train "gpt2-$tokenizer" --preset nano-cpu --tokenizer "$tokenizer"
    train "llama-$tokenizer" --preset moe-nano-dense --kv-heads 2 --tokenizer "$tokenizer"
    train "mixtral-$tokenizer" --preset moe-nano --tied false --tokenizer "$tokenizer"
done

if python3 -c 'import torch, transformers, tokenizers' 2>/dev/null; then
    for family in gpt2 llama mixtral olmoe qwen3_moe; do
        python3 scripts/peers/hf_checkpoint.py "$family" "$folder/$family-pairs" --set vocab_size=520 >/dev/null 2>&1
        python3 - "$text" "$folder/$family-pairs/tokenizer.json" <<'PYTHON'
import sys

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

tokenizer = Tokenizer(models.BPE())
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
alphabet = pre_tokenizers.ByteLevel.alphabet()
tokenizer.train([sys.argv[1]], trainers.BpeTrainer(vocab_size=513, initial_alphabet=alphabet, show_progress=False,
                                                   special_tokens=["<|endoftext|>"]))
tokenizer.save(sys.argv[2])
PYTHON
        compare "$family-pairs"
    done
    # Characters that fall back on bytes, blanks before words or not.
    for family in llama mixtral; do
        for blanks in prepended-words never; do
            name=$family-$blanks
            python3 scripts/peers/hf_checkpoint.py "$family" "$folder/$name" --set vocab_size=490 >/dev/null 2>&1
            cp "tests/fixtures/tokenizer/$blanks/tokenizer.json" "$folder/$name/tokenizer.json"
            compare "$name"
        done
    done
else
    printf 'skipped: byte pairs need torch, transformers and tokenizers\n'
fi
exit "$failed"
