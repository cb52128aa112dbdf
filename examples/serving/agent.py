"""An agent for OpenRLHF without patches, whose reward compares the K attempts at one prompt, by a GPM behind a URL.

    openrlhf-gpm serve --model ckpt/gpm --group_size 8
    python -m openrlhf.cli.train_ppo_ray --train.agent_func_path examples/serving/agent.py \
      --rollout.n_samples_per_prompt 8 ...

GPM_URL names the server; set it before `ray start`, because vLLM's workers read it. The agent takes one turn. Another
environment returns its own feedback with `done` False, and asks for the reward in its last turn.
"""

import os
from typing import Any

import aiohttp
import torch
from openrlhf.utils.agent import AgentInstanceBase, MultiTurnAgentExecutor

GPM_URL = os.environ.get("GPM_URL", "http://127.0.0.1:8000")
WAIT = aiohttp.ClientTimeout(total=600)
"""Seconds for the other attempts to arrive and to be judged; the server gives up after its --deadline."""


class AgentInstance(AgentInstanceBase):
    """One attempt at one prompt."""

    def __init__(self) -> None:
        self.prompt = ""

    async def reset(self, states: dict[str, Any], **_: Any) -> dict[str, Any]:
        """Remember the prompt as it was before any turn."""
        self.prompt = states["observation"]
        return states

    async def step(self, states: dict[str, Any], **_: Any) -> dict[str, Any]:
        """End the attempt with its value among the K. Raises aiohttp's error where the server refuses."""
        asked = {
            "query": [states["observation_text"] + states["action_text"]],
            "prompts": [self.prompt],
            "labels": [states["label"]],
        }
        async with (
            aiohttp.ClientSession(timeout=WAIT, raise_for_status=True) as session,
            session.post(f"{GPM_URL}/get_reward", json=asked) as response,
        ):
            answer = await response.json()
        reward = torch.tensor(answer["rewards"][0])
        return {
            "rewards": reward,
            "scores": reward,
            "environment_feedback": "",
            "done": True,
            "extra_logs": {name: torch.tensor(values[0]) for name, values in answer["extra_logs"].items()},
        }


class AgentExecutor(MultiTurnAgentExecutor):
    """What OpenRLHF looks for in this file."""

    def __init__(self) -> None:
        super().__init__(AgentInstance)
