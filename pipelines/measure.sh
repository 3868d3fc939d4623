#!/usr/bin/env bash
# Prints the figures of the README: scan against its oracle, extraction against the bare forward, a training step's parts,
# peak memory of both stages. Takes about two minutes after the build.
#
#   bash pipelines/measure.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash pipelines/setup.sh
cargo build --release --quiet -p cab-extract -p cab-train
bin=$(realpath "${CARGO_TARGET_DIR:-target}")/release
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# peak COMMAND…: runs it and prints the largest resident set on stderr's last line.
peak() {
    python3 - "$@" <<'PY'
import resource, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(f"{resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024:.0f} MB")
sys.exit(done.returncode)
PY
}

echo "== scan: fast form against the oracle"
cargo bench --quiet -p cab-kernels --bench scan
echo "== extraction against the bare forward"
cargo bench --quiet -p cab-extract --bench extraction 2>/dev/null
echo "== peak memory of extraction (vit-nano, exact:f16), by views a sample"
for views in 4 16 64; do
    echo "$views views, $((600 * views)) records: $(peak "$bin/cab-extract" --views "$views" --codec exact:f16 --out "$work/cache-$views")"
done
echo "== peak memory of training (vim-nano, cab, 200 steps), by records in the cache"
for views in 4 16 64; do
    echo "$((600 * views)) records: $(peak "$bin/cab-train" --cache "$work/cache-$views" --steps 200 --window-mb 64 --out "$work/run-$views")"
done
echo "== parts of a training step, milliseconds (vim-nano, batch 32, defaults), last log line"
for objective in soft cab; do
    "$bin/cab-train" --cache "$work/cache-16" --objective "$objective" --steps 200 --log-every 100 --out "$work/step-$objective" >/dev/null 2>&1
    python3 - "$objective" "$work/step-$objective/metrics.jsonl" <<'PY'
import json, sys
line = [json.loads(text) for text in open(sys.argv[2]) if '"train"' in text][-1]
parts = {name[5:]: 1e3 * value for name, value in line.items() if name.startswith("secs_")}
shown = ", ".join(f"{name} {parts[name]:.2f}" for name in ("data", "forward", "bridge", "backward", "optimizer"))
print(f"{sys.argv[1]}: {shown}, in all {sum(parts.values()):.2f}")
PY
done
