"""Memory that somebody holds on GPUs which Ray calls free. It runs on a node, so it imports little.

Ray frees a GPU when its actor has died. vLLM's engine is a child of that actor and may live some seconds longer, so
the next pass of a self-play would start its engines on GPUs that are still full.
"""

from __future__ import annotations

import subprocess
import time

ASK = ("nvidia-smi", "--query-gpu=index,memory.free,memory.total", "--format=csv,noheader,nounits")
SECONDS = 30.0
"""How long a run that has just ended may hold memory."""


def wait_for_room(gpus: int, share: float, seconds: float = SECONDS) -> str:
    """What to warn of when fewer than `gpus` GPUs of this node have `share` of their memory free; "" once they have.

    share: in [0, 1]; vLLM wants so much free on its GPU when it starts. seconds: how long to wait for it. Without
    nvidia-smi nothing is asked.
    """
    end = time.monotonic() + seconds
    while True:
        try:
            done = subprocess.run(ASK, capture_output=True, text=True, check=True)
        except FileNotFoundError:
            return ""
        except subprocess.CalledProcessError as error:
            return f"cannot look at its GPUs: nvidia-smi ended with {error.returncode} ({error.stderr.strip()[:200]})"
        rows = [row.split(", ") for row in done.stdout.splitlines()]
        memory = [(index, int(free), int(total)) for index, free, total in rows if free.isdigit()]  # not with MIG
        full = [(index, free, total) for index, free, total in memory if free < share * total]
        if not full or len(memory) - len(full) >= gpus:
            return ""
        if time.monotonic() > end:
            found = ", ".join(f"GPU {index} has {free:,} of {total:,} MiB free" for index, free, total in full)
            return (
                f"has {gpus} GPUs free by Ray's count, but {found}, and vLLM wants {share:.0%} of it "
                "(--vllm.gpu_memory_utilization): `nvidia-smi` there shows the processes that hold it"
            )
        time.sleep(0.5)
