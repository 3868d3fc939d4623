#!/usr/bin/env bash
# Sets up like the quickstart and runs every test: bash tests/run.sh [arguments of cargo test]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash pipelines/setup.sh
cargo test --release --workspace "$@"
