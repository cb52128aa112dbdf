"""Stage 6: everything that the report needs from the checkpoints, exactly: no sampling anywhere.

python examples/quickstart/measure.py DIR     # writes DIR/measurements.json
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from commands import RUNS, Settings
from models import answer_batch, policy_probs
from stages import write_atomically
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging
from world import GAMES, Game, sample_wins

from openrlhf_gpm import GPM, core


def measure(folder: Path, settings: Settings) -> dict[str, Any]:
    """See `main`; lists and floats only.

    Returns:
        `games`, one dict per game: size, prompt, answers, wins [K][K] of the training comparisons, gpm_scores [K][K],
        gpm_embeddings [K][2k] and gpm_gate [k], bt_rewards [K], and policies {run: [T + 1][K] probabilities}, the
        start first. `reward_actor_gap`: the largest difference between an embedding that the Ray reward actor gave
        and the one from the checkpoint.
    """
    gpm = GPM.from_pretrained(folder / "gpm")
    policies = {run: read_policies(folder, run, settings.steps) for run in RUNS}
    games = []
    for index, game in enumerate(GAMES):
        scored = gpm.score(game.prompt, list(game.answers))
        games.append(
            {
                "size": game.size,
                "prompt": game.prompt.strip(),
                "answers": list(game.answers),
                "wins": sample_wins(game, settings.seed).tolist(),
                "gpm_scores": scored["scores"],
                "gpm_embeddings": scored["embeddings"],
                "gpm_gate": scored["gate"],
                "bt_rewards": bt_rewards(folder / "bt", game),
                "policies": {run: policies[run][index] for run in RUNS},
            }
        )
    return {"games": games, "reward_actor_gap": reward_actor_gap(gpm, folder / "gpo_gpm" / "groups")}


@torch.no_grad()
def bt_rewards(path: Path, game: Game) -> list[float]:
    """The Bradley-Terry reward of each answer. OpenRLHF's reward model has transformers' layout, a head of one row."""
    model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=1)
    batch = answer_batch(AutoTokenizer.from_pretrained(path), [game])
    return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.squeeze(-1).tolist()


def read_policies(folder: Path, run: str, steps: int) -> list[list[list[float]]]:
    """Per game the policies over the steps, [T + 1][K]: the start, then the checkpoint after each step."""
    paths = [folder / "world" / "start"]
    paths += [folder / f"gpo_{run}" / f"global_step{step}_hf" for step in range(1, steps + 1)]
    tokenizer = AutoTokenizer.from_pretrained(paths[0])
    models = [AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval() for path in paths]
    return [[policy_probs(model, tokenizer, game).tolist() for model in models] for game in GAMES]


def reward_actor_gap(gpm: GPM, groups: Path) -> float:
    """Largest |embedding in the last step's group log - embedding from the checkpoint| over all responses."""
    rows = [json.loads(line) for line in sorted(groups.glob("step_*.jsonl"))[-1].read_text().splitlines()]
    prompts = [row["prompt"] for row in rows for _ in row["responses"]]
    responses = [response for row in rows for response in row["responses"]]
    logged = torch.tensor([embedding for row in rows for embedding in row["embeddings"]])
    return float((gpm.embed(prompts, responses)[0] - logged).abs().max())


def main(folder: Path) -> None:
    """Write measurements.json to `folder`."""
    logging.disable_progress_bar()
    torch.set_num_threads(2)
    measurements = measure(folder, Settings())
    write_atomically(folder / "measurements.json", json.dumps(measurements))
    for game in measurements["games"]:
        share = core.cyclic_share(torch.tensor(game["gpm_scores"]))
        print(f"cycle of {game['size']}: {100 * share:.0f} % of the GPM's scores are cyclic")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
