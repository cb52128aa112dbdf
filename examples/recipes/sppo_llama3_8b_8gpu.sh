#!/usr/bin/env bash
# The same recipe with SPPO: the target is (win rate - 1/2) / beta instead of the mean score / beta.
#
#   examples/recipes/sppo_llama3_8b_8gpu.sh
#   examples/recipes/sppo_llama3_8b_8gpu.sh --gpo.hard --gpo.responses best_worst
#
# The second line counts wins and trains on the best and the worst of 5 responses.
set -euo pipefail
LOSS=sppo exec "$(dirname "$0")/gpo_llama3_8b_8gpu.sh" "$@"
