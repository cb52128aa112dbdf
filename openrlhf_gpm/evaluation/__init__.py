"""How good a preference model is: pairs, RewardBench, cycles, groups."""
