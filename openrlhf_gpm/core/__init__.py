"""The mathematics of general preference models: torch only, fp32, batched over leading dims."""

from openrlhf_gpm.core.game import cyclic_share as cyclic_share
from openrlhf_gpm.core.game import exploitability as exploitability
from openrlhf_gpm.core.game import hodge_split as hodge_split
from openrlhf_gpm.core.game import von_neumann_winner as von_neumann_winner
from openrlhf_gpm.core.game import worst_case_win_rate as worst_case_win_rate
from openrlhf_gpm.core.groups import Groups as Groups
from openrlhf_gpm.core.preference import bt_scores as bt_scores
from openrlhf_gpm.core.preference import embed_rewards as embed_rewards
from openrlhf_gpm.core.preference import embed_scores as embed_scores
from openrlhf_gpm.core.preference import group_probs as group_probs
from openrlhf_gpm.core.preference import group_scores as group_scores
from openrlhf_gpm.core.preference import mean_scores as mean_scores
from openrlhf_gpm.core.preference import preference_score as preference_score
from openrlhf_gpm.core.preference import win_rates as win_rates
from openrlhf_gpm.core.quantiles import quantiles as quantiles
from openrlhf_gpm.core.reward_loss import preference_loss as preference_loss
from openrlhf_gpm.core.reward_loss import score_regression_loss as score_regression_loss
