# Environment of the CPU stack: `. examples/cpu/env.sh` before `ray start`, because Ray's workers inherit it from there.
# Only plain `export NAME=value` and `unset NAME` lines: Python programs read this file too.

# DeepSpeed's accelerator; without CUDA it would guess.
export DS_ACCELERATOR=cpu

# One process per vLLM engine instead of several: it starts in 4.5 s instead of 25.8 s.
export VLLM_ENABLE_V1_MULTIPROCESSING=0

# GiB of KV cache per vLLM engine; otherwise each engine takes a fraction of the machine's memory.
export VLLM_CPU_KVCACHE_SPACE=1

# vLLM would pin its threads to cores of its choice, and two engines choose the same ones.
export VLLM_CPU_OMP_THREADS_BIND=nobind

# torch.compile pays off on a GPU; here the first generation takes 19.5 s with it and 0.8 s without.
export TORCH_COMPILE_DISABLE=1

# Fetch nothing from a hub: a wrong path fails at once instead of after retries.
export HF_HUB_OFFLINE=1

# Tokenizers warn, and can deadlock, when a process that used their threads forks.
export TOKENIZERS_PARALLELISM=false

# No telemetry from Ray and vLLM.
export RAY_USAGE_STATS_ENABLED=0
export VLLM_NO_USAGE_STATS=1

# Without .pyc files each process compiles DeepSpeed, vLLM and transformers again: 30 s instead of 8 s.
unset PYTHONDONTWRITEBYTECODE
