#!/usr/bin/env bash
# What leeml does on this machine's GPU, in about a quarter of an hour: scripts/gpu_check.sh [OUTPUT_FOLDER]
# Needs generated data only. Every line says what ran, how long it took and how it ended; the rest is in OUTPUT_FOLDER.
# What a short loan must tell comes first: steps a second, and HW5 boss.
# SECONDS_FIT: of each training (default 10), SECONDS_BOSS: of HW5 boss (default 240), DATA: a folder with real data,
# CONFIGS: those that are trained, tested and asked for predictions (default: one a homework, and a recurrent one).
# ACCELERATOR=cpu SECONDS_FIT=1 SECONDS_BOSS=1 STEPS=2 tries the script itself where there is no GPU.
set -uo pipefail
cd "$(dirname "$0")/.."
out=${1:-gpu_check}
accelerator=${ACCELERATOR:-gpu}
fit_seconds=${SECONDS_FIT:-10}
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
preset=()
turns=(--steps 1 --repeats 1 --eager)
if [ "$accelerator" = gpu ]; then preset=(--config configs/presets/gpu.yaml) turns=(); fi
fit() { # name, config, seconds, flags ...
  local name=$1 config=$2 seconds=$3
  shift 3
  rm -rf "$out/runs/$name"
  try "fit_$name" leeml fit --config "configs/$config.yaml" "${preset[@]}" "${small[@]}" --trainer.max_steps "$steps" \
    "--trainer.max_time=$(printf '00:00:%02d:%02d' $((seconds / 60)) $((seconds % 60)))" --run_dir "$out/runs/$name" "$@"
  grep -oh "time of .*" "$out/fit_$name.txt" | head -n 1 | sed 's/^/  /' | tee -a "$out/report.txt"
}

try steps leeml bench steps --accelerator "$accelerator" "${turns[@]}"
sed -n '/^Training/,$p' "$out/steps.txt" | tee -a "$out/report.txt"
fit hw5_boss hw5_translation/boss "$boss_seconds"
for config in ${CONFIGS:-hw1_covid/boss hw2_phoneme/boss hw3_food/strong hw4_speaker/boss hw5_translation/medium \
  hw5_translation/strong}; do
  name=${config/\//_}
  fit "$name" "$config" "$fit_seconds" --trainer.limit_val_batches 2
  try "test_$name" leeml test --run_dir "$out/runs/$name" --trainer.limit_test_batches 2
  try "predict_$name" leeml predict --run_dir "$out/runs/$name"
done
try tests_gpu python -m pytest -q -n 4 tests/test_gpu.py
if [ "$accelerator" = gpu ]; then
  fit 16-mixed hw4_speaker/strong "$fit_seconds" --trainer.precision 16-mixed
  fit cuda_graphs hw4_speaker/strong "$fit_seconds" --trainer.callbacks.mode reduce-overhead
fi
preset=()
fit bf16-mixed_eager hw4_speaker/strong "$fit_seconds" --trainer.precision bf16-mixed
if [ "$accelerator" = gpu ]; then
  fit 16-mixed_eager hw4_speaker/strong "$fit_seconds" --trainer.precision 16-mixed
fi
say "$failed failed"
[ "$failed" = 0 ]
