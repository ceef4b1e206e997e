#!/usr/bin/env bash
# Ours and the peers that are installed, interleaved, on this machine: one row a piece of work with medians, the median of
# the rounds' ratios, and the fraction of the roof, all measured in the same run. Appends every figure to scripts/results.csv.
#
#   scripts/bench.sh TEXT [ROW...]       rows: lecture nano-step gpt2-step gpt2-decode gpt2-deep gpt2-generate
#                                        gpt2-prefill mixtral-decode mixtral-generate mixtral-bf16 mixtral-prefill
#                                        small-decode tiny-decode
#
# What is decoded is fed and its logits made, all of them; what is generated has its best token chosen, too. Where that reads
# memory, both programs hold their weights in memory instead of mapping them, ours in as many bits as turns out fastest.
#
# TEXT is the lecture's input (any text of characters will do). ROUNDS (5) and THREADS (2) say how often and with how
# many threads; MODELS (target/bench) is where random models are made once, some 7 GB of them. Needs python3; torch is
# the peer of training and, with transformers, makes the models; llama-cpp-python is the peer of inference. A row or a
# peer that cannot be had is said to be skipped.
set -euo pipefail

rows=(lecture nano-step gpt2-step gpt2-decode gpt2-deep gpt2-generate gpt2-prefill mixtral-decode mixtral-generate
    mixtral-bf16 mixtral-prefill small-decode tiny-decode)
if [ $# -lt 1 ] || [ ! -f "$1" ]; then
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
text=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
shift
[ $# -eq 0 ] || rows=("$@")
rounds=${ROUNDS:-5}
threads=${THREADS:-2}
cd "$(dirname "$0")/.."
programs=${CARGO_TARGET_DIR:-target}/release
models=${MODELS:-target/bench}
cargo build --release --locked

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
have() { python3 -c "import $1" 2>/dev/null; }
have torch && torch=yes || torch=
have llama_cpp && llama=yes || llama=
[ -n "$torch" ] || printf 'skipped: PyTorch (torch is not installed)\n' >&2
[ -n "$llama" ] || printf 'skipped: llama.cpp (llama-cpp-python is not installed)\n' >&2

# A random model of shape $1, as a directory and as a GGUF file; made once.
make_model() {
    local name=$1 sizes dtype=(float16 f16)
    [ ! -f "$models/$name.gguf" ] || return 0
    case $name in
    *-bf16) dtype=(bfloat16 bf16) ;;
    esac
    case ${name%-bf16} in
    gpt2) sizes=(gpt2 --set vocab_size=50257 n_positions=1024 n_embd=768 n_layer=12 n_head=12) ;;
    small) sizes=(gpt2 --set vocab_size=65 n_positions=256 n_embd=384 n_layer=6 n_head=6) ;;
    tiny) sizes=(gpt2 --set vocab_size=65 n_positions=2048 n_embd=64 n_layer=4 n_head=4) ;;
    mixtral)
        sizes=(mixtral --set vocab_size=50257 hidden_size=1024 num_hidden_layers=12 num_attention_heads=16
            num_key_value_heads=16 num_local_experts=8 num_experts_per_tok=2 intermediate_size=2048
            max_position_embeddings=2048)
        ;;
    esac
    mkdir -p "$models"
    rm -rf "${models:?}/$name"
    python3 scripts/peers/hf_checkpoint.py "${sizes[0]}" "$models/$name" --dtype "${dtype[0]}" --scale 1.0 "${sizes[@]:1}" >&2
    "$programs/trainer" export --model "$models/$name" --to gguf --dtype "${dtype[1]}" --out "$models/$name.gguf" >&2
}

# Lets go of what is in memory of model $1: each program reads its own file anew, since the pages of a file stay as they came,
# and small ones are read slower.
forget() {
    python3 - "$models/$1/model.safetensors" "$models/$1.gguf" <<'PYTHON'
import os, sys

for path in sys.argv[1:]:
    file = os.open(path, os.O_RDONLY)
    os.fsync(file)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
PYTHON
}

# One run of ours and of the peer for row $1, each one line of JSON in the row's files.
once() {
    local row=$1 model=$2 sizes started
    shift 2
    sizes=("$@")
    case $row in
    lecture)
        rm -rf "$folder/run"
        started=$(date +%s.%N)
        "$programs/trainer" train --preset gpt-zero --rng torch --seed 1337 --device cpu --threads "$threads" \
            --progress plain --data "$text" --out "$folder/run" >/dev/null 2>&1
        python3 -c "import json, sys; print(json.dumps({'seconds': float(sys.argv[2]) - float(sys.argv[1])}))" \
            "$started" "$(date +%s.%N)" >>"$folder/$row.ours"
        [ -z "$torch" ] || python3 scripts/peers/torch_lecture.py "$text" --threads "$threads" | tail -n 1 >>"$folder/$row.peer"
        ;;
    *-step)
        "$programs/trainer" bench "${sizes[@]}" --dropout 0 --device cpu --threads "$threads" --secs 5 \
            --format json >>"$folder/$row.ours"
        [ -z "$torch" ] || python3 scripts/peers/torch_gpt.py "$model" --threads "$threads" --secs 5 | tail -n 1 >>"$folder/$row.peer"
        ;;
    *)
        sizes+=(--threads "$([ "$row" = tiny-decode ] && echo 1 || echo "$threads")")
        # Either program is given its own way of holding what decoding reads from memory.
        ours=() peer=()
        case $row in
        gpt2-decode | gpt2-deep | gpt2-generate | mixtral-decode | mixtral-generate | mixtral-bf16) ours=(--hold) peer=(--no-mmap) ;;
        esac
        "$programs/runtime" bench --model "$models/$model" "${sizes[@]}" "${ours[@]}" --format json 2>/dev/null >>"$folder/$row.ours"
        [ -z "$llama" ] || python3 scripts/peers/llama_cpp_speed.py "$models/$model.gguf" --repeat 5 "${sizes[@]}" "${peer[@]}" | tail -n 1 >>"$folder/$row.peer"
        ;;
    esac
}

# The roof of arithmetic for rows that are bound by it and do not measure it themselves.
"$programs/trainer" bench --preset nano-cpu --device cpu --threads "$threads" --secs 1 --format json >"$folder/peak"

for round in $(seq "$rounds"); do
    for row in "${rows[@]}"; do
        printf 'round %d of %d: %s\n' "$round" "$rounds" "$row" >&2
        case $row in
        lecture) once "$row" - ;;
        nano-step) once "$row" nano --preset nano --batch 8 ;;
        gpt2-step) once "$row" gpt2_256 --preset gpt2 --batch 2 --block 256 ;;
        gpt2-decode) model=gpt2 sizes=(--prompt 0 --decode 64) ;;
        gpt2-deep) model=gpt2 sizes=(--prompt 0 --decode 64 --depth 512) ;;
        gpt2-generate) model=gpt2 sizes=(--prompt 0 --decode 64 --greedy) ;;
        gpt2-prefill) model=gpt2 sizes=(--prompt 512 --decode 0) ;;
        mixtral-decode) model=mixtral sizes=(--prompt 0 --decode 64) ;;
        mixtral-generate) model=mixtral sizes=(--prompt 0 --decode 64 --greedy) ;;
        mixtral-bf16) model=mixtral-bf16 sizes=(--prompt 0 --decode 64) ;;
        mixtral-prefill) model=mixtral sizes=(--prompt 256 --decode 0) ;;
        small-decode) model=small sizes=(--prompt 0 --decode 64) ;;
        tiny-decode) model=tiny sizes=(--prompt 0 --decode 64) ;;
        *)
            printf 'there is no row %s\n' "$row" >&2
            exit 2
            ;;
        esac
        case $row in
        lecture | *-step) continue ;;
        esac
        if [ -z "$torch" ] && [ ! -f "$models/$model.gguf" ]; then
            printf 'skipped: %s (torch and transformers make its model)\n' "$row" >&2
            continue
        fi
        make_model "$model"
        [ "$round" -gt 1 ] || forget "$model"
        once "$row" "$model" "${sizes[@]}"
    done
done

python3 - "$folder" scripts/results.csv "${rows[@]}" <<'PYTHON'
import csv, datetime, json, statistics, subprocess, sys
from pathlib import Path

folder, results, rows = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
TITLES = {
    "lecture": "the lecture's whole job, s",
    "nano-step": "training step, 10.7M (8 x 256), ms",
    "gpt2-step": "training step, GPT-2 124M (2 x 256), ms",
    "gpt2-decode": "decode, GPT-2 124M f16, 64 from empty, tokens/s",
    "gpt2-deep": "decode, the same, at depth 512, tokens/s",
    "gpt2-generate": "generate, the same, the best token of each, 64 from empty, tokens/s",
    "gpt2-prefill": "prefill, the same, 512 tokens, tokens/s",
    "mixtral-decode": "decode, 757M Mixtral shape, top-2 of 8, tokens/s",
    "mixtral-generate": "generate, the same, the best token of each, tokens/s",
    "mixtral-bf16": "decode, the same in bf16, tokens/s",
    "mixtral-prefill": "prefill, the same, 256 tokens, tokens/s",
    "small-decode": "decode, 10.7M, tokens/s",
    "tiny-decode": "decode, 0.34M, one thread, tokens/s",
}
# Operations of one token in matrices (without the head, which prefill computes once) and in attention, by arithmetic.
PREFILL = {
    "gpt2-prefill": 12 * (24 * 768**2 + 4 * 768 * 256),
    "mixtral-prefill": 12 * (8 * 1024**2 + 2 * 2 * 3 * 1024 * 2048 + 4 * 1024 * 128),
}
# Training and evaluation of the lecture's job: 6 operations a weight and trained row, 2 an evaluated one.
LECTURE = (5000 * 128 * 6 + 51 * 400 * 128 * 2) * (4 * 12 * 64**2 + 64 * 65)
peak = json.loads((folder / "peak").read_text())["peak_gflops"] * 1e9

def runs(row, who):
    path = folder / f"{row}.{who}"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

def key(row):
    if row == "lecture": return "seconds"
    if row.endswith("-step"): return "step_ms"
    if row.endswith("-generate"): return "greedy_tokens_per_s"
    return "prefill_tokens_per_s" if row.endswith("prefill") else "decode_tokens_per_s"

def roof(row, values):
    """The fraction of what this machine can do that ours reached."""
    middle = statistics.median(v[key(row)] for v in values)
    if row == "lecture": return LECTURE / peak / middle
    if row.endswith("-step"): return statistics.median(v["gflops"] / v["peak_gflops"] for v in values)
    if row in PREFILL: return PREFILL[row] * middle / peak
    if row in ("small-decode", "tiny-decode"): return None  # the weights fit into a cache; memory is no roof
    if row.endswith("-generate"): return None  # how much of the head is read follows from what is in it
    return statistics.median(v["decode_gb_per_s"] / v["read_gb_per_s"] for v in values)

def shown(value):
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"

def machine():
    names = [line.split(":", 1)[1].strip() for line in open("/proc/cpuinfo") if line.startswith(("model name", "Model"))]
    return f"{names[0] if names else 'unknown processor'} x {len(names) or '?'}"

commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
today = datetime.date.today().isoformat()
new = not results.exists()
print(f"{machine()}, f32 FMA peak {peak / 1e9:.0f} GFLOP/s, medians of {max(len(runs(r, 'ours')) for r in rows)}\n")
print("| work | lectern | peer | ratio | of the roof |\n|---|---|---|---|---|")
with results.open("a", newline="") as file:
    out = csv.writer(file, lineterminator="\n")
    if new: out.writerow(["date", "commit", "machine", "row", "who", "value"])
    for row in rows:
        ours, peers = runs(row, "ours"), runs(row, "peer")
        if not ours: continue
        mine = statistics.median(v[key(row)] for v in ours)
        out.writerow([today, commit, machine(), row, "lectern", f"{mine:.4g}"])
        share = roof(row, ours)
        cells = [TITLES[row], shown(mine), "-", "-", "-" if share is None else f"{share:.0%}"]
        if peers:
            his = statistics.median(v[key(row)] for v in peers)
            out.writerow([today, commit, machine(), row, peers[0]["engine"], f"{his:.4g}"])
            pairs = zip((v[key(row)] for v in ours), (v[key(row)] for v in peers))
            faster = statistics.median(b / a if key(row) in ("seconds", "step_ms") else a / b for a, b in pairs)
            cells[2:4] = [f"{shown(his)} ({peers[0]['engine'].split('+')[0]})", f"{faster:.2f}"]
        print("| " + " | ".join(cells) + " |", flush=True)
PYTHON
