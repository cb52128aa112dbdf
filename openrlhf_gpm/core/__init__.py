"""The mathematics of general preference models: torch only, fp32, batched over leading dims."""

from openrlhf_gpm.core.game import (
    cyclic_share,
    exploitability,
    hodge_split,
    von_neumann_winner,
    worst_case_win_rate,
)
from openrlhf_gpm.core.policy_loss import best_worst_mask, gpo_target, policy_regression_loss, sppo_target
from openrlhf_gpm.core.preference import (
    bt_scores,
    embed_rewards,
    embed_scores,
    group_probs,
    group_scores,
    mean_scores,
    preference_score,
    win_rates,
)
from openrlhf_gpm.core.reward_loss import preference_loss, score_regression_loss

__all__ = [
    "best_worst_mask",
    "bt_scores",
    "cyclic_share",
    "embed_rewards",
    "embed_scores",
    "exploitability",
    "gpo_target",
    "group_probs",
    "group_scores",
    "hodge_split",
    "mean_scores",
    "policy_regression_loss",
    "preference_loss",
    "preference_score",
    "score_regression_loss",
    "sppo_target",
    "von_neumann_winner",
    "win_rates",
    "worst_case_win_rate",
]
