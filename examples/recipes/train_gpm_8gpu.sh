#!/usr/bin/env bash
# Train a GPM on one node with 8 GPUs of 80 GB, as in table 12 of the paper: Skywork's preference collection, two epochs,
# global batch 32 (4 per GPU, no accumulation), bf16, ZeRO-3, at most 2048 tokens. Not yet tested on GPUs.
#
#   examples/recipes/train_gpm_8gpu.sh gemma-2b              # learning rate 1e-5, embeddings of 6 numbers
#   examples/recipes/train_gpm_8gpu.sh llama-8b              # learning rate 2e-6, embeddings of 8 numbers
#   examples/recipes/train_gpm_8gpu.sh gemma-2b --gpm.gate none --gpm.dim 2       # a later flag overrides an earlier one
#
#   OUT=ckpt/bt-gemma-2b examples/recipes/train_gpm_8gpu.sh gemma-2b \
#     --gpm.head reward --gpm.dim 2 --gpm.gate none --gpm.no_normalize --gpm.tau 1
#
# The last is the paper's Bradley-Terry row. It reads texts, so it also judges policies with another tokenizer, which
# OpenRLHF's own --reward_model_type bt cannot.
# The paper used v0.1 of the collection. v0.2 is the same without the pairs that overlap with RewardBench.
set -euo pipefail

size=${1:-gemma-2b}
shift || true
case "$size" in
  gemma-2b) model=google/gemma-2b-it dim=6 lr=1e-5 ;;
  llama-8b) model=meta-llama/Llama-3.1-8B-Instruct dim=8 lr=2e-6 ;;
  *) echo "error: first argument must be gemma-2b or llama-8b, got $size" >&2 && exit 2 ;;
esac
out=${OUT:-ckpt/gpm-$size}

# One node, also where a container has a /job/hostfile, which deepspeed would take.
deepspeed --hostfile /dev/null --module openrlhf.cli.train_rm \
  --model.model_name_or_path "${MODEL:-$model}" \
  --reward_model_type gpm \
  --gpm.dim "$dim" \
  --gpm.gate softmax_scaled \
  --gpm.tau 0.1 \
  --gpm.held_out 0.01 \
  --gpm.bad_rows skip \
  --data.dataset "${DATA:-Skywork/Skywork-Reward-Preference-80K-v0.2}" \
  --data.chosen_key chosen \
  --data.rejected_key rejected \
  --data.apply_chat_template \
  --data.max_len 2048 \
  --train.batch_size 32 \
  --train.micro_batch_size 4 \
  --train.max_epochs 2 \
  --adam.lr "$lr" \
  --lr_scheduler cosine \
  --lr_warmup_ratio 0.03 \
  --ds.zero_stage 3 \
  --ds.param_dtype bf16 \
  --ds.attn_implementation flash_attention_2 \
  --ds.packing_samples \
  --model.gradient_checkpointing_enable \
  --eval.steps 200 \
  --logger.tensorboard_dir "$out/tensorboard" \
  --ckpt.output_dir "$out" \
  --ckpt.path "$out/deepspeed" \
  --ckpt.save_steps 500 \
  --ckpt.load_enable \
  "$@"
