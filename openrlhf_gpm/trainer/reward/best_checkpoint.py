"""What a training run saves besides its last weights: the best checkpoint by evaluation, and the model cards."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch.distributed as dist
from openrlhf.utils.logging_utils import init_logger

from openrlhf_gpm.checkpoints.card import write_model_card
from openrlhf_gpm.config import GPMConfig
from openrlhf_gpm.files import replace_directory

logger = init_logger(__name__)

BETTER = {"loss": ("eval_loss", -1), "acc": ("acc_mean", 1)}
"""--gpm.save_best -> the metric of the evaluation, and 1 if higher is better, -1 if lower is."""


class BestCheckpoint:
    """Keeps CKPT.OUTPUT_DIR/best: the weights of the best evaluation so far, with best.json and a model card.

    Rank 0 decides for all, because saving is collective. The folder is replaced by a rename.
    """

    def __init__(self, strategy: Any, tokenizer: Any, args: SimpleNamespace) -> None:
        self.strategy, self.tokenizer, self.args = strategy, tokenizer, args
        self.metric, self.sign = BETTER[args.gpm.save_best]
        self.path = Path(args.ckpt.output_dir) / "best"
        record = self.path / "best.json"
        resumes = args.ckpt.load_enable and record.exists()
        self.value: float | None = json.loads(record.read_text())[self.metric] if resumes else None

    def update(self, model: Any, metrics: dict[str, float], step: int) -> bool:
        """Save `model` if `metrics` are the best so far. Returns whether they are, the same on every rank."""
        decision = [self.value is None or self.sign * metrics[self.metric] > self.sign * self.value]
        if dist.is_initialized():
            dist.broadcast_object_list(decision, src=0)
        if not decision[0]:
            return False
        self.value = metrics[self.metric]
        new = self.path.with_name(".best.new")  # the same on every rank
        if self.strategy.is_rank_0():
            shutil.rmtree(new, ignore_errors=True)  # left by a run that was killed while it saved
        self.strategy.save_model(model, self.tokenizer, str(new))
        if self.strategy.is_rank_0():
            (new / "best.json").write_text(json.dumps({"step": step, **metrics}, indent=2) + "\n")
            write_card(self.args, self.strategy._unwrap_model(model).config, metrics, new)
            replace_directory(new, self.path)
            logger.info(f"best {self.args.gpm.save_best} so far, {self.value:.4f} at step {step}: {self.path}")
        return True


def write_card(args: SimpleNamespace, config: Any, metrics: dict[str, float], directory: Any = None) -> None:
    """The model card of a checkpoint in `directory` (default: --ckpt.output_dir): data, command, settings, metrics."""
    write_model_card(
        directory or args.ckpt.output_dir,
        config=GPMConfig.from_pretrained_config(config),
        base_model=args.model.model_name_or_path,
        data=[os.path.basename(name) for name in args.data.dataset.split(",")],
        metrics=metrics,
        command=shlex.join(["openrlhf.cli.train_rm", *sys.argv[1:]]),
    )
