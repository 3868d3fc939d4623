#!/usr/bin/env bash
# From nothing to distilled Vision Mambas on real images: sets up, builds, extracts once, trains six students from the one
# cache (three objectives, two seeds, equal steps), prints the table and writes report.html and summary.json.
#
#   bash pipelines/quickstart.sh [--short] [--out DIR]
#
#   --short     a few steps and views: shows that everything works, not what it reaches
#   --out DIR   where to write [default: ./quickstart]
#
# Run it again to continue where it stopped; remove the directory to start over.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=quickstart views=16 steps=400
while [ $# -gt 0 ]; do
    case $1 in
    --short) views=3 steps=40 ;;
    --out)
        [ $# -ge 2 ] || { echo "quickstart: --out needs a directory" >&2; exit 2; }
        out=$2
        shift
        ;;
    *)
        sed -n '2,/^set -/p' "$0" | sed '$d; s/^# \{0,1\}//' >&2
        exit 2
        ;;
    esac
    shift
done

now() { date +%s.%N; }
since() { awk -v a="$1" -v b="$(now)" 'BEGIN { printf "%.1f", b - a }'; }

bash pipelines/setup.sh
start=$(now)
cargo build --release --quiet -p cab-extract -p cab-train
build_secs=$(since "$start")
bin=${CARGO_TARGET_DIR:-target}/release
mkdir -p "$out"

start=$(now)
"$bin/cab-extract" --teacher vit-nano --views "$views" --augment affine --codec exact:f16 --out "$out/cache" >"$out/extract.json"
extract_secs=$(since "$start")
"$bin/cab-extract" info --cache "$out/cache"

# Two runs at a time, one thread each: small students gain more from that than from two threads.
start=$(now)
jobs=1
[ "$(nproc)" -ge 2 ] && jobs=2
for objective in vanilla soft cab; do
    for seed in 0 1; do
        echo "$objective $seed"
    done
done | xargs -P "$jobs" -L 1 bash -c '
    "$0" --cache "$1/cache" --objective "$3" --seed "$4" --steps "$2" --threads 1 --out "$1/runs/$3-$4" >"$1/$3-$4.json"
' "$bin/cab-train" "$out" "$steps"
train_secs=$(since "$start")

printf '{"seconds": {"build": %s, "extract": %s, "train": %s}}\n' "$build_secs" "$extract_secs" "$train_secs" >"$out/summary.json"
echo
"$bin/cab-train" report "$out"/runs/*-[0-9] --out "$out/report.html" --summary "$out/summary.json"
echo "build $build_secs s, extraction $extract_secs s, training of six students $train_secs s; report: $out/report.html"
