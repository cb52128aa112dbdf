"""Sample answers of a policy to prompts with vLLM, in the form that `openrlhf-gpm winrate` reads.

usage: answers.py MODEL PROMPTS.jsonl OUTPUT.jsonl [--n 4] [--max_tokens 64] [--temperature 0.7]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from vllm import LLM, SamplingParams

from openrlhf_gpm.files import temporary


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder of the policy")
    parser.add_argument("prompts", type=Path, help="rows whose `prompt` is a list of messages")
    parser.add_argument("output", type=Path)
    parser.add_argument("--n", type=int, default=4, help="answers per prompt (default 4)")
    parser.add_argument("--max_tokens", type=int, default=64, help="longest answer (default 64)")
    parser.add_argument("--temperature", type=float, default=0.7, help="(default 0.7)")
    args = parser.parse_args()
    prompts = [json.loads(line)["prompt"] for line in args.prompts.read_text(encoding="utf-8").splitlines()]
    engine = LLM(args.model, dtype="float32", enforce_eager=True, seed=0)
    sampling = SamplingParams(n=args.n, temperature=args.temperature, max_tokens=args.max_tokens)
    found = engine.chat(prompts, sampling)
    with temporary(args.output) as new, open(new, "w", encoding="utf-8") as file:
        for prompt, request in zip(prompts, found, strict=True):
            row = {"prompt": prompt, "responses": [answer.text for answer in request.outputs]}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
