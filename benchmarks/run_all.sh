#!/usr/bin/env bash
# The whole set of performance figures, and the tables of docs/performance.md made from them. About 25 minutes on two quiet cores;
# `run_all.sh prepare` beforehand makes the networks (some minutes more, and any machine load will do).
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-.venv/bin/python}"
cases=(vits14_reg:224:1,8,32 vits14_reg:518:1,8 vitb14_reg:224:1,8,32 vitb14_reg:518:1,8 vitl14_reg:224:1,8 vitl14_reg:518:1)
if [[ "${1:-}" == prepare ]]; then
  exec "$python" benchmarks/forward.py --prepare --cases "${cases[@]}"
fi
results="${RESULTS:-benchmarks/results}"
"$python" benchmarks/startup.py --rounds 7 --out "$results/startup.json"
"$python" benchmarks/forward.py --cases "${cases[@]}" --rounds 5 --case-seconds 60 --out "$results/forward.json"
"$python" benchmarks/folder.py --images 200 --rounds 3 --seconds 300 --out "$results/folder.json"
"$python" benchmarks/scaling.py --batches 1 4 16 64 --rounds 3 --case-seconds 90 --out "$results/scaling.json"
"$python" benchmarks/report.py --results "$results"
