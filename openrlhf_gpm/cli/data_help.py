"""What `openrlhf-gpm data --help` and its actions show below their flags."""

EXAMPLES = """\
examples:
  openrlhf-gpm data check train.parquet held_out.jsonl
      report what is in the files, which rows are bad, which prompts they share; exit status 1 if a row is bad
  openrlhf-gpm data split prefs.parquet --fraction 0.1 --train train.jsonl --held_out held_out.jsonl
      hold out a tenth of the prompts; no prompt is on both sides
  openrlhf-gpm data merge train.jsonl --output groups.jsonl
      turn the pairs of one prompt into one group, so that each response is encoded once
  openrlhf-gpm data cyclic --input ultrafeedback.jsonl --output cyclic/
      find cycles between the attributes of rated responses: no_instruction_following.jsonl, no_honesty.jsonl ...
  openrlhf-gpm data cycle --groups groups.jsonl --length 3 --output cyc3.jsonl
      impose a cycle: model 1 beats model 2, model 2 beats model 3, model 3 beats model 1

input: JSON lines (also gzipped), JSON, parquet, CSV, TSV, or a dataset's name as "owner/name:split". Pairs
(prompt, chosen, rejected), lists (RewardBench 2), groups (prompt, responses with scores, ranks or comparisons),
UltraFeedback; docs/data.md has an example of each. A bad row ends the command, unless --bad_rows skip leaves it out.
output: JSON lines; a file appears when it is complete.
"""
CHECK = """\
example:
  $ openrlhf-gpm data check prefs.jsonl
  prefs.jsonl
    rows                  828
    bad rows              2
      prefs.jsonl:12: 'chosen' is an empty response; drop the row or fill it
      ...
"""
SPLIT = """\
Only the hash of the prompt and --seed decides the side of a prompt. It stays there when rows are reordered or added,
so files that were split with the same seed and fraction may be concatenated. A text is the same prompt as one user
message. Each whole text without a prompt is its own prompt.

example:
  openrlhf-gpm data split prefs.parquet --fraction 0.1 --seed 0 --train train.jsonl --held_out held_out.jsonl
"""
MERGE = """\
Equal responses are stored once; repeated comparisons are kept. A group is written as
  {"prompt": ..., "responses": ["a", "b", "c"], "comparisons": [[0, 1], [2, 0], [1, 2, 0.5]]}
where [1, 2, 0.5] says that b and c tie.

example:
  openrlhf-gpm data merge pairs.parquet more_pairs.jsonl --output groups.jsonl
"""
CYCLIC = """\
Each set leaves one attribute out, and each of the others decides one comparison. Without helpfulness, A beats B
because it follows the instruction better, B beats C because it is more honest, and C beats A because it is more
truthful. Each prompt gives a set at most one cycle, its clearest (see docs/data.md).

examples:
  openrlhf-gpm data cyclic --input ultrafeedback.jsonl --output cyclic/
  openrlhf-gpm data cyclic --input rated.jsonl --output cyclic/ --attributes clarity depth style safety
  $ head -1 rated.jsonl
  {"prompt": "Hi", "responses": ["a", "b", "c"], "ratings": {"clarity": [1, 2, 3], "depth": [3, 1, 2], ...}}
"""
CYCLE = """\
The responses of each line must come from n models, in the same order on every line. Response 1 beats 2, 2 beats 3 ...
the last beats 1. No scalar reward gets more than (n - 1) / n of these comparisons right; a GPM can get all.

examples:
  openrlhf-gpm data cycle --groups groups.jsonl --length 4 --output cyc4.jsonl
  openrlhf-gpm data cycle --groups groups.jsonl --length 5 --full --output cyc5full.jsonl
  openrlhf-gpm data cycle --groups groups.jsonl --length 3 --random_direction --seed 1 --output control.jsonl
"""
