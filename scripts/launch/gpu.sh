#!/usr/bin/env bash
# One GPU: scripts/launch/gpu.sh --config configs/hw3_food/strong.yaml [more flags of leeml fit]
set -euo pipefail
exec leeml fit "$@" --config "$(dirname "$0")/../../configs/presets/gpu.yaml"
