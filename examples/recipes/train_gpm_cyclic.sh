#!/usr/bin/env bash
# Train a GPM on a cyclic preference set with one GPU, as in table 13 of the paper: Gemma-2B-it, batch 1, learning rate
# 1e-6, 50 epochs. The paper reports accuracy 100 for the GPM and 50.0 to 62.9 for Bradley-Terry on its four sets. Run on an
# H200 with a tiny model and sdpa (`make gpu`), not yet at its own size.
#
#   DATA=cyclic.jsonl examples/recipes/train_gpm_cyclic.sh
#   DATA=cyclic.jsonl OUT=ckpt/bt-cyclic examples/recipes/train_gpm_cyclic.sh --reward_model_type bt
#
# DATA: one comparison per line, {"prompt", "chosen", "rejected"}. Keep the comparisons of a prompt together in one split.
set -euo pipefail

: "${DATA:?set DATA to a file of cyclic comparisons, see the head of this script}"
out=${OUT:-ckpt/gpm-cyclic}

deepspeed --num_gpus 1 --module openrlhf.cli.train_rm \
  --model.model_name_or_path "${MODEL:-google/gemma-2b-it}" \
  --reward_model_type gpm \
  --gpm.dim "${DIM:-6}" \
  --gpm.gate softmax_scaled \
  --gpm.tau 0.1 \
  --data.dataset "$DATA" \
  --eval.dataset "$DATA" \
  --data.prompt_key prompt \
  --data.apply_chat_template \
  --data.max_len 2048 \
  --train.batch_size 1 \
  --train.micro_batch_size 1 \
  --train.max_epochs 50 \
  --adam.lr 1e-6 \
  --lr_scheduler cosine \
  --lr_warmup_ratio 0.03 \
  --ds.zero_stage 3 \
  --ds.param_dtype bf16 \
  --ds.attn_implementation flash_attention_2 \
  --model.gradient_checkpointing_enable \
  --logger.tensorboard_dir "$out/tensorboard" \
  --ckpt.output_dir "$out" \
  --ckpt.path "$out/deepspeed" \
  "$@"
