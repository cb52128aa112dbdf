#!/usr/bin/env bash
# Train Llama-3-8B-Instruct by self-play with GPO, as in section 6.3 of the paper: three passes, each over its own third of
# the UltraFeedback prompts and from the policy of the pass before; 5 responses per prompt at temperature 0.7 and top-p 0.9;
# learning rate 5e-7, beta 0.001. All models share the GPUs: 8 of 80 GB on each of NODES nodes. Not yet tested on GPUs.
#
#   examples/recipes/train_gpm_8gpu.sh gemma-2b && examples/recipes/gpo_llama3_8b_8gpu.sh
#   NODES=4 examples/cluster/ray_job.sh      # on several nodes; also slurm.sbatch and kuberay.yaml in that folder
#   REWARD=ckpt/bt-gemma-2b OUT=ckpt/gpo-bt examples/recipes/gpo_llama3_8b_8gpu.sh      # the paper's Bradley-Terry rows
#
# The same line goes on after a stop or a crash; a variant needs its own OUT.
# Disk under OUT: 16 GB per pass, and up to 4 checkpoints of 112 GB while a pass runs. On several nodes ZeRO-3 gathers 16 GB
# over the network per micro-batch: add --ds.zpg 8, and NCCL's settings for your network (docs/cluster.md).
#
# Two differences from the paper: AdamW instead of RMSprop (OpenRLHF offers adam and muon), and the opponent pi_t is the
# policy that sampled the batch of 256 prompts, not the one at the start of the pass.
#
# beta 0.001 makes targets of hundreds of nats, which no update reaches: the gradient is that of REINFORCE with s_hat.
# For the regression that GPO describes, drop both --gpo flags (beta is then 1) and compare target_q95 with moved_q95.
set -euo pipefail

loss=${LOSS:-gpo} # or sppo
nodes=${NODES:-1}
out=${OUT:-ckpt/$loss-llama3-8b}
data='UCLA-AGI/data-mistral-7b-instruct-sppo-iter{pass}'

# LAUNCH goes in front of the command: `ray job submit ... --`, or nothing.
exec ${LAUNCH:-} openrlhf-gpm self-play --passes "${PASSES:-3}" --output "$out" -- \
  --actor.model_name_or_path "${POLICY:-meta-llama/Meta-Llama-3-8B-Instruct}" \
  --reward.model_name_or_path "${REWARD:-ckpt/gpm-gemma-2b}" \
  --reward_model_type gpm \
  --actor.policy_loss_type "$loss" \
  --gpo.beta 0.001 \
  --gpo.target_clip 1000 \
  --gpm.bad_rows skip \
  --rollout.n_samples_per_prompt 5 \
  --rollout.temperature 0.7 \
  --rollout.top_p 0.9 \
  --rollout.max_new_tokens 2048 \
  --data.max_len 4096 \
  --data.prompt_dataset "${DATA:-$data}" \
  --data.input_key prompt \
  --data.apply_chat_template \
  --train.num_episodes 1 \
  --rollout.batch_size 256 \
  --rollout.micro_batch_size 10 \
  --train.batch_size 128 \
  --train.micro_batch_size 2 \
  --actor.adam.lr 5e-7 \
  --actor.gradient_checkpointing_enable \
  --algo.kl.init_coef 0 \
  --actor.num_nodes "$nodes" \
  --actor.num_gpus_per_node 8 \
  --reward.num_nodes "$nodes" \
  --reward.num_gpus_per_node 8 \
  --vllm.num_engines "$((8 * nodes))" \
  --vllm.tensor_parallel_size 1 \
  --vllm.gpu_memory_utilization 0.5 \
  --vllm.enable_prefix_caching \
  --train.colocate_all \
  --vllm.enable_sleep \
  --ds.enable_sleep \
  --ds.zero_stage 3 \
  --ds.param_dtype bf16 \
  --ds.attn_implementation flash_attention_2 \
  --ds.packing_samples \
  --logger.tensorboard_dir "$out/tensorboard/pass{pass}" \
  --ckpt.save_steps 20 \
  "$@"
