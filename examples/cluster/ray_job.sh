#!/usr/bin/env bash
# The 8-GPU recipe on several nodes of a running Ray cluster, submitted from any machine that reaches its dashboard. All
# passes are one job.
#
#   NODES=4 RAY_DASHBOARD=http://head-node:8265 OUT=/shared/ckpt/gpo REWARD=/shared/ckpt/gpm-gemma-2b \
#     examples/cluster/ray_job.sh
#
# Every node needs openrlhf-gpm and the patched OpenRLHF: build one image with
#   pip install ".[openrlhf]" && openrlhf-gpm patch apply
# OUT and REWARD must be on storage that all nodes share. The run checks that, and the software, on every node before it
# loads anything. If this script loses its connection, the job goes on; a second one into the same OUT is refused.
set -euo pipefail
case "${OUT:?set OUT to a folder that all nodes share}" in
  /*) ;;
  *) echo "error: OUT must be an absolute path, got $OUT: the job runs in another folder" >&2 && exit 2 ;;
esac
cd "$(dirname "$0")"
export NODES=${NODES:-4}
export LAUNCH="ray job submit --address=${RAY_DASHBOARD:-http://127.0.0.1:8265} --runtime-env=runtime_env.yaml --"
exec ../recipes/gpo_llama3_8b_8gpu.sh "$@"
