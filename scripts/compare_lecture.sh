#!/usr/bin/env bash
# The lecture's whole job, ours and PyTorch's in turn on one machine: what each took, their ratio, and whether both
# printed the same losses. Needs python3 with torch and numpy.
#
#   scripts/compare_lecture.sh TEXT [ROUNDS]        ROUNDS is 1 unless given; one takes PyTorch some minutes
#
# THREADS (2) goes to both, STEPS (5000) makes the job shorter. Ours is timed from outside, with start-up, saving,
# report and sample; PyTorch's is the time that its script gives itself, which begins after its imports.
set -euo pipefail

if [ $# -lt 1 ] || [ $# -gt 2 ] || [ ! -f "$1" ]; then
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2
    exit 2
fi
text=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
rounds=${2:-1}
threads=${THREADS:-2}
steps=${STEPS:-5000}
cd "$(dirname "$0")/.."
trainer=${CARGO_TARGET_DIR:-target}/release/trainer
cargo build --release --locked

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
TIMEFORMAT=%R
for round in $(seq "$rounds"); do
    printf 'round %d of %d: lectern ' "$round" "$rounds" >&2
    rm -rf "$folder/run"
    {
        time "$trainer" train --preset gpt-zero --rng torch --seed 1337 --device cpu --threads "$threads" \
            --steps "$steps" --progress plain --data "$text" --out "$folder/run" >/dev/null 2>"$folder/ours"
    } 2>>"$folder/seconds"
    printf '%s s, pytorch ' "$(tail -n 1 "$folder/seconds")" >&2
    python3 scripts/peers/torch_lecture.py "$text" --threads "$threads" --steps "$steps" >"$folder/theirs"
    tail -n 1 "$folder/theirs" >>"$folder/objects"
    printf '%s s\n' "$(sed -n '$s/.*"seconds": \([0-9.]*\).*/\1/p' "$folder/objects")" >&2
done
"$trainer" eval --device cpu --model "$folder/run" --data "$text" --format json >"$folder/loss"

python3 - "$folder" <<'PYTHON'
import json, re, statistics, sys
from pathlib import Path

folder = Path(sys.argv[1])
row = re.compile(r"^step (\d+): train loss ([\d.]+), val loss ([\d.]+)$", re.M)
ours, theirs = (row.findall((folder / name).read_text(errors="replace")) for name in ("ours", "theirs"))
if [r[0] for r in ours] != [r[0] for r in theirs]:
    sys.exit(f"the rows differ: {len(ours)} of ours, {len(theirs)} of PyTorch's")
apart = max(abs(float(a) - float(b)) for mine, his in zip(ours, theirs) for a, b in zip(mine[1:], his[1:]))
objects = [json.loads(line) for line in (folder / "objects").read_text().splitlines()]
loss = json.loads((folder / "loss").read_text())["val_loss"]
lectern = statistics.median(float(line) for line in (folder / "seconds").read_text().split())
peer = statistics.median(o["seconds"] for o in objects)
print(f"lectern              {lectern:8.2f} s   exact val loss {loss:.4f}")
print(f"{objects[0]['engine']:20s} {peer:8.2f} s   exact val loss {objects[0]['exact_val_loss']:.4f}")
print(f"{peer / lectern:.1f} times as fast; {len(ours)} rows, at most {apart:.4f} apart")
PYTHON
