#!/usr/bin/env bash
# SmolLM2-135M-Instruct plays against itself on real prompts, on a CPU: against a Bradley-Terry reward, against a GPM, and
# against the GPM with a magnet. A GPM of other prompts, which no policy trained against, then judges all of them and the start.
#
#   . examples/cpu/env.sh
#   ray start --head --num-gpus 3 --num-cpus 8 --include-dashboard=false
#   RAY_ADDRESS=127.0.0.1:6379 examples/smollm2/self_play.sh DATA/condorcet3_train.parquet [FLAGS OF train_ppo_ray]
#   ray stop
#
# The prompts are the shortest of DATA. Half of them train the reward models; of these, TRAIN are the policies' prompts, and the
# rest are those of the comparison. The other half trains its judge. The results are in outputs/smollm2/self_play/winrate.
# The same line goes on after a stop; other sizes need another OUT.
set -euo pipefail
here=$(dirname "$0")
. "$here/../cpu/env.sh"
out=${OUT:-outputs/smollm2}
play=$out/self_play
data=${1:?name the preference file, see the head of this script}
shift
: "${RAY_ADDRESS:?set RAY_ADDRESS to a running cluster, see the head of this script}"
export LAYERS=${LAYERS-15} # of the reward models
prompts=${PROMPTS:-256} train=${TRAIN:-64} tokens=${TOKENS:-64}
name=$(basename "${data%.*}")
mkdir -p "$play/done"

once() { # NAME COMMAND: run it, unless that was done
  local name=$1
  shift
  [ -e "$play/done/$name" ] || { echo "== $name" && "$@" && touch "$play/done/$name"; }
}

judge() { # NAME GROUPS FLAGS
  # shellcheck disable=SC2086
  "$here/train.sh" "self_play/$1" "$2" --gpm.pool mean --lr_warmup_ratio 0.1 --train.max_epochs 3 \
    "${@:3}" ${JUDGE_FLAGS:-}
}

policy() { # NAME REWARD FLAGS
  openrlhf-gpm self-play --passes "${PASSES:-1}" --output "$play/$1" -- \
    --actor.model_name_or_path "$out/model" \
    --reward.model_name_or_path "$play/$2" \
    --reward_model_type gpm \
    --actor.policy_loss_type gpo \
    --gpm.log_groups "$play/$1/groups{pass}" \
    --rollout.n_samples_per_prompt 4 \
    --rollout.temperature 0.7 \
    --rollout.max_new_tokens "$tokens" \
    --data.max_len 1024 \
    --data.prompt_dataset "$play/policy.jsonl" \
    --data.input_key prompt \
    --data.apply_chat_template \
    --train.num_episodes 1 \
    --rollout.batch_size 8 \
    --rollout.micro_batch_size 4 \
    --train.batch_size 32 \
    --train.micro_batch_size 4 \
    --actor.adam.lr 3e-6 \
    --actor.lr_scheduler constant \
    --algo.kl.init_coef 0 \
    --actor.num_gpus_per_node 1 \
    --reward.num_gpus_per_node 1 \
    --vllm.num_engines 1 \
    --vllm.sync_backend gloo \
    --vllm.enforce_eager \
    --ds.zero_stage 2 \
    --ds.param_dtype fp32 \
    --ds.attn_implementation sdpa \
    --ckpt.save_steps 4 \
    --logger.tensorboard_dir "$play/tensorboard/$1" \
    "${@:3}"
}

once prompts python "$here/select_prompts.py" "$data" --prompts "$prompts" --held_out $((prompts / 2)) --output "$play/data"
own=$play/data/$name/train.jsonl others=$play/data/$name/held_out.jsonl
head -n "$train" "$own" > "$play/policy.jsonl"
tail -n +$((train + 1)) "$own" > "$play/new.jsonl"
[ -s "$play/new.jsonl" ] || { echo "error: TRAIN $train leaves no prompt of PROMPTS / 2 = $((prompts / 2)) to compare on: lower it" >&2; exit 2; }

unit="--gpm.no_normalize --gpm.tau 1"
# shellcheck disable=SC2086
once gpm judge gpm "$own" $unit
once bt judge bt "$own" --gpm.head reward
for each in gpm bt; do # the loop reads whole models, not LoRA adapters
  once "merge $each" openrlhf-gpm convert --from gpm --to gpm --input "$play/$each" --output "$play/$each-merged"
done
# shellcheck disable=SC2086
once judge judge judge "$others" $unit

[ -d "$out/model" ] || python "$here/model.py" "$out/model"
policy against_bt bt-merged "$@"
policy gpo gpm-merged "$@"
policy gpo_magnet gpm-merged --gpo.pull 0.2 "$@"

last=pass${PASSES:-1}
for each in start against_bt gpo gpo_magnet; do
  model=$play/$each/$last
  [ $each = start ] && model=$out/model
  once "answers of $each" python "$here/answers.py" "$model" "$play/new.jsonl" "$play/$each.jsonl" --max_tokens "$tokens"
done
once winrate openrlhf-gpm winrate --model "$play/judge" --output "$play/winrate" \
  --answers start="$play/start.jsonl" against_bt="$play/against_bt.jsonl" gpo="$play/gpo.jsonl" gpo_magnet="$play/gpo_magnet.jsonl"
for each in bt gpm judge; do # what the judges know of prompts that they have not seen
  unseen=$others
  [ $each = judge ] && unseen=$own
  once "eval of $each" openrlhf-gpm eval --model "$play/$each" --data "$unseen" --output "$play/eval/$each" --no_plots
done
