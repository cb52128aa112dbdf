#!/usr/bin/env bash
# Train the tiny policy by self-play on a CPU: vLLM generates, the GPM of train_gpm.sh scores, DeepSpeed trains, Ray
# orchestrates. Two steps take about a minute and a half.
#
#   . examples/cpu/env.sh
#   ray start --head --num-gpus 3 --num-cpus 8 --include-dashboard=false
#   RAY_ADDRESS=127.0.0.1:6379 examples/cpu/gpo.sh             # LOSS=sppo for SPPO
#   ray stop
#
# To Ray these are only numbers: policy, GPM and engine take a GPU and a CPU each, the controller a CPU. The policy goes to
# outputs/tiny/gpo (or sppo).
set -euo pipefail
here=$(dirname "$0")
. "$here/env.sh"
world=${WORLD:-outputs/tiny}
out=$world/${LOSS:-gpo}
: "${RAY_ADDRESS:?set RAY_ADDRESS to a running cluster, see the head of this script}"

python -m openrlhf.cli.train_ppo_ray \
  --actor.model_name_or_path "$world/model" \
  --reward.model_name_or_path "$world/gpm" \
  --reward_model_type gpm \
  --actor.policy_loss_type "${LOSS:-gpo}" \
  --gpo.beta 1 \
  --gpm.log_groups "$out/groups" \
  --rollout.n_samples_per_prompt 8 \
  --rollout.max_new_tokens 4 \
  --data.max_len 32 \
  --data.prompt_dataset "$world/prompts.jsonl" \
  --data.input_key prompt \
  --data.apply_chat_template \
  --train.num_episodes 1 \
  --rollout.batch_size 4 \
  --rollout.micro_batch_size 16 \
  --train.batch_size 32 \
  --train.micro_batch_size 16 \
  --actor.adam.lr 1e-3 \
  --algo.kl.init_coef 0 \
  --actor.num_gpus_per_node 1 \
  --reward.num_gpus_per_node 1 \
  --vllm.num_engines 1 \
  --vllm.sync_backend gloo \
  --vllm.enforce_eager \
  --ds.zero_stage 2 \
  --ds.param_dtype fp32 \
  --ds.attn_implementation sdpa \
  --logger.tensorboard_dir "$out/tensorboard" \
  --ckpt.output_dir "$out" \
  --ckpt.path "$out/deepspeed" \
  "$@"
