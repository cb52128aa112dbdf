#!/usr/bin/env bash
# The 8-GPU recipe on several nodes of a running Ray cluster, submitted from any machine that reaches its dashboard.
#
#   NODES=4 RAY_DASHBOARD=http://head-node:8265 OUT=/shared/ckpt/gpo REWARD=/shared/ckpt/gpm-gemma-2b \
#     examples/cluster/ray_job.sh
#
# Every node needs openrlhf-gpm and the patched OpenRLHF: build one image with
#   pip install ".[openrlhf]" && openrlhf-gpm patch apply
# The run names a node without them before it loads anything. OUT and REWARD must be on storage that all nodes share.
set -euo pipefail
here=$(dirname "$0")
export NODES=${NODES:-4}
export LAUNCH="ray job submit --address=${RAY_DASHBOARD:-http://127.0.0.1:8265} \
  --runtime-env=$here/runtime_env.yaml --"
exec "$here/../recipes/gpo_llama3_8b_8gpu.sh" "$@"
