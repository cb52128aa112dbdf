#!/usr/bin/env bash
# Train a tiny GPM on a CPU with the commands and flags of the GPU recipes, in about a minute.
#
#   examples/cpu/train_gpm.sh                   # writes outputs/tiny/gpm, which scores rock, paper, scissors as a cycle
#   RANKS=2 examples/cpu/train_gpm.sh --ds.zero_stage 3
#
# fp32, because CPUs without AVX512-bf16 compute bf16 several times slower. ZeRO 2, because ZeRO 0 logs no norms in fp32.
set -euo pipefail
here=$(dirname "$0")
. "$here/env.sh"
world=${WORLD:-outputs/tiny}
[ -d "$world/model" ] || python "$here/tiny.py" "$world"

deepspeed --num_gpus "${RANKS:-1}" --module openrlhf.cli.train_rm \
  --model.model_name_or_path "$world/model" \
  --reward_model_type gpm \
  --gpm.dim 4 \
  --gpm.gate none \
  --gpm.tau 0.1 \
  --data.dataset "$world/pairs.jsonl" \
  --eval.dataset "$world/pairs.jsonl" \
  --data.prompt_key prompt \
  --data.apply_chat_template \
  --data.max_len 32 \
  --train.batch_size 56 \
  --train.micro_batch_size 56 \
  --train.max_epochs 60 \
  --adam.lr 1e-3 \
  --eval.steps 60 \
  --ds.zero_stage 2 \
  --ds.param_dtype fp32 \
  --ds.attn_implementation sdpa \
  --logger.logging_steps 10 \
  --logger.tensorboard_dir "$world/tensorboard" \
  --ckpt.output_dir "$world/gpm" \
  --ckpt.path "$world/gpm_deepspeed" \
  "$@"
