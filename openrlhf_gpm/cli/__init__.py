"""`openrlhf-gpm ...`: the only place that reads argv or prints."""
