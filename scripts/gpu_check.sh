#!/usr/bin/env bash
# What leeml does on this machine's GPU, in about a quarter of an hour: scripts/gpu_check.sh [OUTPUT_FOLDER]
# Needs generated data only. Every line says what ran, how long it took and how it ended; the rest is in OUTPUT_FOLDER.
# SECONDS_FIT: of each training (default 20), SECONDS_BOSS: of HW5 boss (default 240), DATA: a folder with real data,
# CONFIGS: those that are trained, tested and asked for predictions (default: one a homework, and a recurrent one).
# ACCELERATOR=cpu SECONDS_FIT=1 SECONDS_BOSS=1 STEPS=2 tries the script itself where there is no GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-gpu_check}
accelerator=${ACCELERATOR:-gpu}
fit_seconds=${SECONDS_FIT:-20}
boss_seconds=${SECONDS_BOSS:-240}
steps=${STEPS:--1}
mkdir -p "$out"
data=${DATA:-$out/data}
failed=0

say() { printf '%s\n' "$*" | tee -a "$out/report.txt"; }
try() { # name, command ...
  local name=$1 begin=$SECONDS code=0
  shift
  "$@" >"$out/$name.txt" 2>&1 || code=$?
  say "$(printf '%-34s %4d s  %s' "$name" $((SECONDS - begin)) "$([ $code = 0 ] && echo ok || echo "FAILED ($code), see $out/$name.txt")")"
  [ $code = 0 ] || failed=$((failed + 1))
}

: >"$out/report.txt"
leeml doctor 2>&1 | grep -i "cpu\|gpu\|torch\|packages" | tee -a "$out/report.txt"
[ "$accelerator" = gpu ] && nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader | tee -a "$out/report.txt"
if [ -z "${DATA:-}" ]; then
  for homework in hw1_covid hw2_phoneme hw3_food hw4_speaker hw5_translation; do
    [ -d "$data/$homework" ] || try "data_$homework" leeml data sample "$homework" "$data"
  done
fi

small=(--data.root "$data" --trainer.max_epochs -1 --trainer.accelerator "$accelerator" --trainer.enable_progress_bar false)
limit() { printf -- '--trainer.max_time=00:00:%02d:%02d' $(($1 / 60)) $(($1 % 60)); }
preset=()
[ "$accelerator" = gpu ] && preset=(--config configs/presets/gpu.yaml)
for config in ${CONFIGS:-hw1_covid/boss hw2_phoneme/boss hw3_food/strong hw4_speaker/boss hw5_translation/medium \
  hw5_translation/strong}; do
  name=${config/\//_}
  run=$out/runs/$name
  rm -rf "$run"
  try "fit_$name" leeml fit --config "configs/$config.yaml" "${preset[@]}" "${small[@]}" \
    "$(limit "$fit_seconds")" --trainer.max_steps "$steps" --trainer.limit_val_batches 2 --run_dir "$run"
  try "test_$name" leeml test --run_dir "$run" --trainer.limit_test_batches 2
  try "predict_$name" leeml predict --run_dir "$run"
  grep -h "time of" "$run/log.txt" "$out/fit_$name.txt" 2>/dev/null | head -n 1 | tee -a "$out/report.txt"
done
for precision in bf16-mixed 16-mixed; do
  [ "$accelerator" = cpu ] && [ $precision = 16-mixed ] && continue
  run=$out/runs/plain_$precision
  rm -rf "$run"
  try "uncompiled_$precision" leeml fit --config configs/hw4_speaker/boss.yaml "${small[@]}" "$(limit "$fit_seconds")" \
    --trainer.max_steps "$steps" --trainer.precision "$precision" --run_dir "$run"
done
try tests_gpu python -m pytest -q -n 0 tests/test_gpu.py
if [ "$accelerator" = gpu ]; then
  for homework in hw3_food hw4_speaker hw5_translation; do try "bench_$homework" leeml bench "$homework"; done
fi
rm -rf "$out/runs/boss"
try fit_hw5_boss leeml fit --config configs/hw5_translation/boss.yaml "${preset[@]}" "${small[@]}" \
  "$(limit "$boss_seconds")" --trainer.max_steps "$steps" --run_dir "$out/runs/boss"
say "$failed failed"
[ "$failed" = 0 ]
