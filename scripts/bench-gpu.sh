#!/usr/bin/env bash
# Everything a CUDA card is to show, in one call of under nine minutes: the selfcheck, then each piece of work beside its
# peer, interleaved on the same card, a row as soon as it is known. For a machine with a driver, CUDA's libraries and
# PyTorch, and neither cargo nor a network.
#
#   scripts/bench-gpu.sh prepare [DATA]     here: fills target/bench-gpu with a release build and the texts
#   scripts/bench-gpu.sh [--dry] [ROW...]   there: rows selfcheck gpt2 lecture-step nano moe replay sanitizer
#
# DATA (LECTERN_DATA) is a folder with lecture-input.txt, lecture-log.txt and tinyshakespeare.txt. The folder that is
# filled is ignored by git and stays below 64 MiB: take it along with the scripts. Figures are appended to RESULTS
# (results.csv under OUT where that is set, else scripts/results.csv). ROUNDS (2) says how often, MINUTES (8.5) how long in
# all: what would not fit is said to be skipped. The release build runs where the C library is as new as here.
#
# --dry runs the same rows in sizes of a toy on the emulated device (scripts/emulated.sh, target/debug/trainer), so that
# the script itself can be tried; nothing is appended.
set -euo pipefail
house=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$house"
taken=${CARGO_TARGET_DIR:-target}/bench-gpu
most_bytes=$((64 << 20))

fail() {
    printf 'bench-gpu: %s\n' "$*" >&2
    exit 1
}

prepare() {
    local data=${1:-${LECTERN_DATA:-}} file bytes
    cargo build --release --locked -p trainer
    mkdir -p "$taken"
    cp "${CARGO_TARGET_DIR:-target}/release/trainer" "$taken/trainer"
    git rev-parse --short HEAD >"$taken/commit"
    for file in lecture-input.txt lecture-log.txt tinyshakespeare.txt; do
        if [ -n "$data" ] && [ -f "$data/$file" ]; then
            cp "$data/$file" "$taken/$file"
            chmod u+w "$taken/$file"
        else
            printf 'bench-gpu: there is no %s: name the folder that holds it; rows that need it will be skipped\n' \
                "$file" >&2
        fi
    done
    bytes=$(du -sb "$taken" | cut -f 1)
    [ "$bytes" -lt "$most_bytes" ] || fail "$taken is $bytes bytes, $most_bytes allowed"
    printf '%s: %d bytes, ready to be taken along with scripts/\n' "$taken" "$bytes"
}

dry=
case ${1:-} in
-h | --help)
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0"
    exit 0
    ;;
prepare)
    shift
    prepare "$@"
    exit 0
    ;;
--dry)
    dry=yes
    shift
    ;;
esac
all=(selfcheck gpt2 replay moe lecture-step nano sanitizer)
rows=("${all[@]}")
[ $# -eq 0 ] || rows=("$@")
for row in "${rows[@]}"; do
    [[ " ${all[*]} " == *" $row "* ]] || {
        printf 'there is no row %s; there are: %s\n' "$row" "${all[*]}" >&2
        exit 2
    }
done

rounds=${ROUNDS:-2}
limit=$(awk -v minutes="${MINUTES:-8.5}" 'BEGIN { printf "%d", 60 * minutes }')
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
if [ -n "$dry" ]; then
    trainer=(scripts/emulated.sh "${CARGO_TARGET_DIR:-target}/debug/trainer")
    results=$folder/results.csv
    rounds=1
    [ -x "${trainer[1]}" ] || fail "${trainer[1]} is not built: cargo build -p trainer"
else
    trainer=("$taken/trainer")
    results=${RESULTS:-${OUT:+$OUT/results.csv}}
    results=${results:-scripts/results.csv}
    [ -x "$taken/trainer" ] || fail "$taken/trainer is not there: scripts/bench-gpu.sh prepare, before this machine"
fi

# PyTorch's wheels bring CUDA's libraries, which need not be the system's.
wheels() {
    python3 - <<'PYTHON' 2>/dev/null || true
import glob, importlib.util, os
found = importlib.util.find_spec("torch")
root = os.path.dirname(os.path.dirname(found.origin)) if found else ""
wanted = ("libnvrtc.so*", "libnvrtc-builtins.so*", "libcublasLt.so*", "libnccl.so*")
folders = {os.path.dirname(path) for name in wanted for path in glob.glob(f"{root}/nvidia/**/{name}", recursive=True)}
print(":".join(sorted(folders)))
PYTHON
}
if [ -z "$dry" ]; then
    known=$(ldconfig -p 2>/dev/null || true)
    for library in libnvrtc.so libcublasLt.so; do
        [[ $known == *"$library"* ]] && continue
        more=$(wheels)
        [ ! -d /usr/local/cuda/lib64 ] || more=/usr/local/cuda/lib64${more:+:$more}
        export LD_LIBRARY_PATH=${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$more
        break
    done
fi

torch=
python3 -c 'import torch; raise SystemExit(0 if torch.cuda.is_available() else 1)' 2>/dev/null && torch=card
if [ -z "$torch" ] && [ -n "$dry" ] && python3 -c 'import torch' 2>/dev/null; then
    torch=processor
fi

left() { printf '%d' $((limit - SECONDS)); }

# Runs a command for at most $1 seconds of those that are left; what it prints goes to file $2, its complaints beside.
within() {
    local seconds=$1 file=$2 code=0
    shift 2
    [ "$(left)" -gt 10 ] || {
        printf 'no time is left' >"$file.why"
        return 1
    }
    [ "$seconds" -lt "$(left)" ] || seconds=$(left)
    timeout "$seconds" "$@" >"$file" 2>"$file.errors" || code=$?
    case $code in
    0) return 0 ;;
    124) printf 'it took more than %d s' "$seconds" >"$file.why" ;;
    *) printf 'exit %d: %s' "$code" "$(grep -v '^ *$' "$file.errors" | tail -n 1 | cut -c 1-300)" >"$file.why" ;;
    esac
    return 1
}

# One timing of ours for row $1, with the flags after it.
ours() {
    local row=$1
    shift
    within 150 "$folder/once" "${trainer[@]}" bench --device cuda --dropout 0 --format json "$@" || {
        printf 'lectern: %s\n' "$(cat "$folder/once.why")" >>"$folder/$row.failed"
        return 0
    }
    tail -n 1 "$folder/once" >>"$folder/$row.ours"
}

# One of PyTorch's.
peer() {
    local row=$1
    shift
    if [ -z "$torch" ]; then
        printf 'peer: PyTorch that sees the card is not installed\n' >>"$folder/$row.failed"
        return 0
    fi
    within 200 "$folder/once" python3 scripts/peers/torch_gpt.py "$@" || {
        printf 'peer: %s\n' "$(cat "$folder/once.why")" >>"$folder/$row.failed"
        return 0
    }
    tail -n 1 "$folder/once" >>"$folder/$row.peer"
}

# The row of the table for what was timed: $1 its name, $2 its title, $3 what it must reach, $4 the figure compared (step_ms
# or tokens_per_s).
tell() {
    python3 - "$folder" "$results" "$dry" "$@" <<'PYTHON'
import csv, datetime, json, statistics, sys
from pathlib import Path

folder, results, dry, row, title, must, key = sys.argv[1:]
folder, results = Path(folder), Path(results)

def runs(who):
    path = folder / f"{row}.{who}"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

def middle(values, key):
    known = [value[key] for value in values if value.get(key) is not None]
    return statistics.median(known) if known else None

def shown(value):
    return "-" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"

ours, peers = runs("ours"), runs("peer")
failed = folder / f"{row}.failed"
why = sorted(set(failed.read_text().splitlines())) if failed.exists() else []
mine, his = middle(ours, key), middle(peers, key)
faster = None if not (mine and his) else his / mine if key == "step_ms" else mine / his
mfu = middle(ours, "mfu")
cells = [title, shown(mine), shown(his), "-" if faster is None else f"{faster:.2f}", must,
         "-" if mfu is None else f"{mfu:.1%}"]
print("| " + " | ".join(cells) + " |" + "".join(f"  ({reason})" for reason in why), flush=True)
if dry: sys.exit()
machine = ours[0]["device"].split(" (")[0] if ours else "unknown"
commit = (folder / "commit").read_text().strip()
new = not results.exists()
with results.open("a", newline="") as file:
    out = csv.writer(file, lineterminator="\n")
    if new: out.writerow(["date", "commit", "machine", "row", "who", "value"])
    today = datetime.date.today().isoformat()
    for value, who, name in [(mine, "lectern", row), (his, peers[0].get("engine", "lectern, dense") if peers else "", row),
                             (mfu, "lectern", f"{row}-mfu")]:
        if value is not None: out.writerow([today, commit, machine, f"cuda-{name}", who, f"{value:.4g}"])
PYTHON
}

cat "$taken/commit" >"$folder/commit" 2>/dev/null || git rev-parse --short HEAD >"$folder/commit" 2>/dev/null ||
    printf 'unknown\n' >"$folder/commit"

# Sizes, and what a toy has instead.
seconds=(--secs 6)
toy=(--vocab 65 --layers 1 --width 16 --heads 2 --block 8 --batch 2 --secs 0.05)
shape() {
    if [ -n "$dry" ]; then
        case $1 in
        moe) flags=(--preset moe-zero "${toy[@]}") ;;
        *) flags=(--preset gpt-zero "${toy[@]}") ;;
        esac
        return
    fi
    case $1 in
    gpt2) flags=(--preset gpt2 --batch 32 "${seconds[@]}") ;;
    moe) flags=(--preset moe-gpt2 --batch 32 "${seconds[@]}") ;;
    lecture-step) flags=(--preset gpt-zero --batch 16 "${seconds[@]}") ;;
    nano) flags=(--preset nano --batch 64 "${seconds[@]}") ;;
    esac
}
rival() {
    if [ -n "$dry" ]; then
        given=(seed --secs 0.1)
        return
    fi
    case $1 in
    gpt2) given=(gpt2 --batch 32 --compile --dtype bfloat16 --secs 8) ;;
    lecture-step) given=(seed --secs 5) ;;
    nano) given=(nano --batch 64 --compile --dtype bfloat16 --secs 6) ;;
    esac
}

selfcheck() {
    local flags=(selfcheck --device cuda --no-sanitizer) keep=${OUT:-$folder}
    [ -z "$dry" ] || flags+=(--quick)
    if within 200 "$keep/selfcheck.txt" "${trainer[@]}" "${flags[@]}"; then
        printf '| selfcheck | %s |\n' "$(tail -n 1 "$keep/selfcheck.txt")"
    else
        printf '| selfcheck | FAILED, %s |\n' "$(cat "$keep/selfcheck.txt.why")"
        grep '^FAILED' -A 1 "$keep/selfcheck.txt" || true
    fi
}

sanitizer() {
    local tool
    command -v compute-sanitizer >/dev/null || {
        printf '| sanitizer | skipped: compute-sanitizer is not in PATH |\n'
        return
    }
    for tool in memcheck racecheck; do
        if within 120 "${OUT:-$folder}/$tool.txt" compute-sanitizer --tool "$tool" --error-exitcode 99 "${trainer[@]}" \
            selfcheck --device cuda --quick --no-sanitizer; then
            printf '| compute-sanitizer %s | nothing found |\n' "$tool"
        else
            printf '| compute-sanitizer %s | %s |\n' "$tool" "$(cat "${OUT:-$folder}/$tool.txt.why")"
        fi
    done
}

# The lecture's log, row by row.
replay() {
    local flags=(train --preset gpt-zero --rng torch --seed 1337 --device cuda --precision f32 --progress plain --save-every 0
        --sample 0 --out "$folder/run")
    local file data=${LECTERN_DATA:-}
    if [ -n "$dry" ]; then
        flags+=(--steps 3 --eval-batches 1)
        for file in lecture-input.txt lecture-log.txt; do
            [ ! -f "$data/$file" ] || cp "$data/$file" "$folder/"
        done
        taken=$folder
    fi
    if [ ! -f "$taken/lecture-input.txt" ] || [ ! -f "$taken/lecture-log.txt" ]; then
        printf '| the lecture'"'"'s log | skipped: lecture-input.txt and lecture-log.txt were not taken along |\n'
        return
    fi
    within 120 "$folder/replay" "${trainer[@]}" "${flags[@]}" --data "$taken/lecture-input.txt" || {
        printf '| the lecture'"'"'s log | FAILED, %s |\n' "$(cat "$folder/replay.why")"
        return
    }
    python3 - "$folder/replay.errors" "$taken/lecture-log.txt" "$dry" <<'PYTHON'
import re, sys
row = re.compile(r"^step (\d+): train loss ([\d.]+), val loss ([\d.]+)$", re.M)
ours, theirs = (row.findall(open(name, errors="replace").read()) for name in sys.argv[1:3])
pairs = [(int(a[0]), max(abs(float(x) - float(y)) for x, y in zip(a[1:], b[1:])))
         for a, b in zip(ours, theirs) if a[0] == b[0]]
early, whole = max([d for step, d in pairs if step <= 600], default=None), max([d for _, d in pairs], default=None)
if whole is None:
    print("| the lecture's log | FAILED, no row in common |")
else:
    held = len(pairs) == len(theirs) and early <= 0.001
    verdict = "dry" if sys.argv[3] else "holds" if held else "FAILED"
    print(f"| the lecture's log, f32 | {len(pairs)} of {len(theirs)} rows | rows 0 to 600 within {early:.4f} (0.001), "
          f"all within {whole:.4f} (reach: 0.002) | {verdict} |")
PYTHON
}

printf '| work | lectern | peer | ratio | must | MFU |\n|---|---|---|---|---|---|\n'
for row in "${rows[@]}"; do
    case $row in
    selfcheck | sanitizer | replay)
        "$row"
        continue
        ;;
    esac
    for _ in $(seq "$rounds"); do
        shape "$row"
        ours "$row" "${flags[@]}"
        if [ "$row" = moe ]; then
            # Its peer is its own dense twin.
            shape gpt2
            ours moe-twin "${flags[@]}"
        else
            rival "$row"
            peer "$row" "${given[@]}"
        fi
    done
    case $row in
    gpt2) tell "$row" 'GPT-2 124M, bf16, batch 32 x 1024, tokens/s' '1.0x (1.2x), 41 % (48 %)' tokens_per_s ;;
    lecture-step) tell "$row" "the lecture's step, 16 x 8, against eager float32, ms" '15x (0.25 ms)' step_ms ;;
    nano) tell "$row" 'nano 10.7M, 64 x 256, bf16, ms' '1.3x (4 ms)' step_ms ;;
    moe)
        [ ! -f "$folder/moe-twin.ours" ] || mv "$folder/moe-twin.ours" "$folder/moe.peer"
        [ ! -f "$folder/moe-twin.failed" ] || cat "$folder/moe-twin.failed" >>"$folder/moe.failed"
        tell "$row" 'GPT-2 with 8 experts, top-2, against its dense twin, tokens/s' '0.80x (0.90x)' tokens_per_s
        ;;
    esac
done
printf '%d s; %s\n' "$SECONDS" "$([ -n "$dry" ] && printf 'dry: no figure is kept' || printf 'figures: %s' "$results")" >&2
