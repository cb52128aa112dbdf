"""`openrlhf-gpm serve`: a GPM over HTTP. Heavy imports wait for `run`."""

import argparse
import logging
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openrlhf_gpm.cli.scorer_flags import add_scorer_flags, scorer_options
from openrlhf_gpm.flags import KEY, flag_fields
from openrlhf_gpm.serving.access import check_host, is_loopback, read_keys
from openrlhf_gpm.serving.limits import INCOMPLETE, PROMPT_FROM, REWARDS, Limits, check_rewards

if TYPE_CHECKING:
    from openrlhf_gpm.serving.app import Service

EXAMPLE = """\
example:
  $ openrlhf-gpm serve --model ckpt/gpm --group_size 4
  $ curl http://127.0.0.1:8000/score -H 'content-type: application/json' \\
      -d '{"groups": [{"prompt": "Name a prime.", "responses": ["7", "9"]}]}'

endpoints:
  POST /score        groups, as in the input of `score` -> what `score` writes of them
  POST /embed        the same groups -> embeddings and gates only
  POST /get_reward   OpenRLHF's remote reward protocol, for its --reward.remote_url http://HOST:PORT/get_reward
  GET  /health /ready /metrics /docs
  GET  /             with --ui: a page to compare the responses to one prompt in a browser

On SIGTERM and Ctrl-C the server answers the groups that it has taken, refuses the others, and ends.
docs/serving.md has the contracts, and what TRL, verl, slime and verifiers users write.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command and its options."""
    parser = subparsers.add_parser(
        "serve",
        help="serve a GPM over HTTP: groups, embeddings, OpenRLHF's remote rewards",
        description="Serve a GPM over HTTP. Groups of all requests share batches; each prompt is encoded once.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--model", required=True, type=Path, metavar="DIR", help="GPM checkpoint (or a LoRA adapter)")
    add_scorer_flags(parser)
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1, this machine only)")
    add("--port", type=int, default=8000, help="0: any free one (default: 8000)")
    add("--ui", action="store_true", help="show a page at / that compares the responses to one prompt")
    add("--api-key-file", type=Path, metavar="FILE", help="keys, one per line; a request must bring one of them")
    add("--no-auth", action="store_true", help="let everybody who reaches another --host than this machine use it")
    rewards = parser.add_argument_group("/get_reward; the first three are also parameters of its URL")
    add = rewards.add_argument
    add("--group_size", type=int, metavar="K", help="responses per prompt, --rollout.n_samples_per_prompt of the run")
    add("--reward", choices=REWARDS, default=REWARDS[0], help="mean score or win rate in the group (default: score)")
    add(
        "--prompt_from",
        choices=PROMPT_FROM,
        default=PROMPT_FROM[0],
        help="what the GPM gets: prompts as the policy reads them, or labels (default: prompts)",
    )
    add(
        "--policy_eos",
        action="append",
        default=[],
        metavar="TEXT",
        help="what the policy's tokenizer writes at the end of a response, such as '<|eot_id|>'; may be repeated",
    )
    add("--deadline", type=float, default=150.0, metavar="S", help="seconds that a response waits (default: 150)")
    add(
        "--incomplete",
        choices=INCOMPLETE,
        default=INCOMPLETE[0],
        help="a group that is not whole at its deadline: refuse it, or score those that came (default: refuse)",
    )
    limits = parser.add_argument_group("limits")
    for name, item in flag_fields(Limits).items():
        text = f"{item.metadata[KEY]['help']} (default: {item.default})"
        limits.add_argument(f"--{name}", type=int, default=item.default, metavar="N", help=text)


def run(args: argparse.Namespace) -> int:
    """Serve until told to stop. Raises ValueError for wrong flags, before it listens."""
    limits = Limits(**{name: getattr(args, name) for name in flag_fields(Limits)})
    check_rewards(args.group_size, args.deadline, limits)
    keys = read_keys(args.api_key_file) if args.api_key_file else []
    warning = check_host(args.host, bool(keys), args.no_auth)
    options = scorer_options(args)

    try:
        from openrlhf_gpm.serving.server import listen, serve
    except ImportError as error:
        raise ValueError(
            f"serve needs fastapi, uvicorn, prometheus_client ({error}): pip install '.[serve]'"
        ) from error

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    service = make_service(args, limits, keys, options)
    with listen(args.host, args.port) as listening:
        if warning:
            print(f"warning: {warning}", file=sys.stderr)
        name = f"[{args.host}]" if ":" in args.host else args.host
        print(f"serving {args.model} at http://{name}:{listening.getsockname()[1]}", flush=True)
        if keys and not is_loopback(args.host):
            print("keys and texts travel unencrypted: put a proxy with TLS in front", file=sys.stderr)
        serve(service, listening)
    return 0


def make_service(args: argparse.Namespace, limits: Limits, keys: list[str], options: dict[str, Any]) -> "Service":
    """The service of the flags; its model is not loaded yet, but its files are checked."""
    from openrlhf_gpm.checkpoints.checkpoint import open_checkpoint
    from openrlhf_gpm.fingerprint import fingerprint
    from openrlhf_gpm.scoring.backend import pick_device
    from openrlhf_gpm.scoring.scorer import GPM
    from openrlhf_gpm.serving.app import Service
    from openrlhf_gpm.serving.batching import Batcher
    from openrlhf_gpm.serving.cohort import Cohorts
    from openrlhf_gpm.serving.metrics import Metrics

    if args.backend == "torch":
        pick_device(args.device)
    checkpoint = open_checkpoint(args.model, args.trust_remote_code)
    gpm = asdict(checkpoint.gpm)
    shown = {name: gpm[name] for name in ("head", "dim", "gate", "tau", "max_len")}
    model = {"name": args.model.resolve().name, "fingerprint": fingerprint(args.model), **shown}
    metrics = Metrics()
    load = partial(GPM.from_pretrained, args.model, device=args.device, **options)
    batcher = Batcher(load, checkpoint.formatter(), limits, metrics)

    cohorts = Cohorts(batcher.score_one, args.deadline, args.incomplete, limits, metrics)
    return Service(
        batcher=batcher,
        cohorts=cohorts,
        metrics=metrics,
        limits=limits,
        keys=keys,
        model=model,
        group_size=args.group_size,
        reward=args.reward,
        prompt_from=args.prompt_from,
        policy_eos=args.policy_eos,
        ui=args.ui,
    )
