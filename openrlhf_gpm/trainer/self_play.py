"""Self-play in passes: one train_ppo_ray after the other, each from the policy of the one before. Can be resumed."""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from openrlhf_gpm import objectives
from openrlhf_gpm.checkpoints.tensors import tensor_shapes
from openrlhf_gpm.files import read_object
from openrlhf_gpm.lock import lock
from openrlhf_gpm.objectives import opponents
from openrlhf_gpm.trainer.policy.opponent import HISTORY
from openrlhf_gpm.trainer.policy.resume import last_checkpoint
from openrlhf_gpm.trainer.policy.run_state import LOCK, check_flags

OURS = ("--ckpt.output_dir", "--ckpt.path", "--ckpt.load_enable")
POLICY = "--actor.model_name_or_path"
GRACE = 30.0
"""Seconds that a pass gets to end by itself when it is stopped."""

LIBC: Any = ctypes.CDLL(None)
PR_SET_PDEATHSIG = 1

FILES = (".json", ".jsonl", ".csv", ".parquet", ".arrow")
"""How a data set ends that OpenRLHF reads as a file, not as a name."""

GROUPS = "groups"

Say = Callable[[str], object]


@dataclass(frozen=True)
class Pass:
    """One pass: where it puts its policy, and all its flags."""

    number: int
    folder: Path
    flags: tuple[str, ...]

    @property
    def checkpoints(self) -> Path:
        """The folder of its DeepSpeed checkpoints, which goes when the pass is done."""
        return self.folder / "deepspeed"


def plan(flags: Sequence[str], passes: int, output: Path, log_groups: bool = False) -> list[Pass]:
    """The passes 1 to `passes` in OUTPUT/pass1 ...; `{pass}` in a flag's value becomes the number of the pass.

    log_groups: each pass logs its groups, to its subfolder `GROUPS` unless the flags name another folder.
    Raises ValueError for flags that the driver sets itself.
    """
    if passes < 1:
        raise ValueError(f"--passes must be >= 1, got {passes}")
    if not flags:
        raise ValueError("no flags of train_ppo_ray: give them after `--`, see `openrlhf-gpm self-play --help`")
    given = {word.partition("=")[0] for word in flags}
    for flag in OURS:
        if flag in given:
            raise ValueError(f"{flag} is set by self-play for each pass: remove it, and name the folder by --output")
    if POLICY not in given:
        raise ValueError(f"{POLICY} is missing, or not spelled out: name the policy that pass 1 starts from")
    output = output.absolute()
    if log_groups and "--gpm.log_groups" not in given:
        flags = [*flags, "--gpm.log_groups", str(output / "pass{pass}" / GROUPS)]
    planned: list[Pass] = []
    for number in range(1, passes + 1):
        folder = output / f"pass{number}"
        own = ["--ckpt.output_dir", str(folder), "--ckpt.path", str(folder / "deepspeed"), "--ckpt.load_enable"]
        if planned:
            own += [POLICY, str(planned[-1].folder)]
        filled = [word.replace("{pass}", str(number)) for word in flags]
        planned.append(Pass(number, folder, (*filled, *own)))
    return planned


def with_reference(planned: Sequence[Pass]) -> list[Pass]:
    """The passes with one reference policy for all, the start of pass 1, where the objective needs one."""
    args = _parse(planned[0].flags)
    if args.frozen.ref or "ref" not in objectives.frozen_policies(args):
        return list(planned)
    return [replace(each, flags=(*each.flags, "--frozen.ref", _policy(planned[0]))) for each in planned]


def with_history(planned: Sequence[Pass]) -> list[Pass]:
    """The passes, each with the answers of those before it, where the opponent is the run's history."""
    opponent = opponents.from_args(_parse(planned[0].flags))
    if opponent.kind != "history":
        return list(planned)
    folders = [opponent.history] if opponent.history else []
    given = []
    for each in planned:
        more = ("--gpm.history", ",".join(folders)) if folders else ()
        given.append(replace(each, flags=(*each.flags, *more)))
        folders.append(str(each.folder / HISTORY))
    return given


def unfinished(each: Pass) -> str | None:
    """Why the folder of a pass holds no whole model, or None; looks at config.json and the headers of the weights."""
    try:
        read_object(each.folder / "config.json", "the model was not saved")
        tensor_shapes(each.folder)
    except ValueError as error:
        return str(error)
    return None


def check(planned: Sequence[Pass]) -> None:
    """Raise ValueError, before anything starts, where a later pass could not run or an earlier one had other flags."""
    first_open = next((i for i, each in enumerate(planned) if unfinished(each)), len(planned))
    for each in planned[first_open + 1 :]:
        if not unfinished(each):
            raise ValueError(
                f"{each.folder} is done, but pass {planned[first_open].number} before it is not: delete it"
            )
    logs: set[str] = set()
    for i, each in enumerate(planned):
        # The policy of a pass that waits for another is not there yet: check its other flags with a policy that is.
        ready = each.flags if i <= first_open else (*each.flags, POLICY, _policy(planned[first_open]))
        args = _parse(ready)
        _check_inputs(each, args)
        if i <= first_open:
            check_flags(args)
        if args.gpm.log_groups in logs:
            raise ValueError("--gpm.log_groups is the same folder for every pass: put {pass} into it")
        logs |= {args.gpm.log_groups} - {None}


def _check_inputs(each: Pass, args: SimpleNamespace) -> None:
    if args.reward_model_type != "gpm" and not objectives.load(args.actor.policy_loss_type).own_loss:
        raise ValueError(
            "self-play compares the responses of a prompt: pass --reward_model_type gpm, or one of "
            f"{', '.join(objectives.classes())} as --actor.policy_loss_type"
        )
    for given in (args.data.prompt_dataset or "").split(","):
        path = Path(given.partition("@")[0])
        if path.suffix in FILES and not {"*", ":"} & set(given) and not path.exists():
            raise ValueError(f"pass {each.number}: --data.prompt_dataset {path} does not exist: correct the path")


def _policy(each: Pass) -> str:
    return _value(each, POLICY)


def _value(each: Pass, flag: str) -> str:
    place = max(i for i, word in enumerate(each.flags) if word.partition("=")[0] == flag)
    _, equals, value = each.flags[place].partition("=")
    return value if equals else each.flags[place + 1]


def _parse(flags: Sequence[str]) -> SimpleNamespace:
    """The checked arguments of train_ppo_ray. Its remarks are left to the run itself; errors end the process."""
    from openrlhf.cli.train_ppo_ray import parse_args

    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            args: SimpleNamespace = parse_args(list(flags))
    except AssertionError as error:
        raise ValueError(str(error)) from error
    finally:
        logging.disable(logging.NOTSET)
    return args


def group_logs(planned: Sequence[Pass]) -> dict[str, Path]:
    """The folders of the group logs of the passes that are done, by "pass N"."""
    done = [each for each in planned if not unfinished(each)]
    return {f"pass {each.number}": Path(_value(each, "--gpm.log_groups")) for each in done}


def run(planned: Sequence[Pass], say: Say, after_pass: Callable[[], object] = lambda: None) -> int:
    """Run the passes that are not done. Returns 0, or the exit status of the pass that ended the run.

    after_pass: called when a pass is done, in this call or before.
    Raises ValueError where another self-play runs in the same folder, or as `check` does. SIGINT and SIGTERM stop the
    pass, and all its processes, before they stop this one.
    """
    lock(planned[0].folder.parent / LOCK, f"--output {planned[0].folder.parent}")
    planned = with_history(with_reference(planned))
    check(planned)
    for each in planned:
        if not unfinished(each):
            say(f"pass {each.number} is done: {each.folder}")
            _drop_checkpoints(each, say)
            after_pass()
            continue
        try:
            status = _train(each, say)
        except BaseException:
            say(f"pass {each.number} was stopped. {_go_on(each)}")
            raise
        if status == 0 and (reason := unfinished(each)):
            say(f"pass {each.number} exited with status 0, but {reason}: do all nodes share {each.folder}?")
            return 1
        if status != 0:
            how = f"was killed by signal {-status}" if status < 0 else f"ended with exit status {status}"
            refused = status == 2 and last_checkpoint(each.checkpoints) is None
            rest = "the line above says why" if refused else f"its output above says why. {_go_on(each)}"
            say(f"pass {each.number} {how}: {rest}")
            return status if status > 0 else 128 - status
        _drop_checkpoints(each, say)
        after_pass()
    say(f"all {len(planned)} passes are done: the policy is {planned[-1].folder}")
    return 0


def _drop_checkpoints(each: Pass, say: Say) -> None:
    if each.checkpoints.exists():
        try:
            shutil.rmtree(each.checkpoints)
        except OSError as error:  # a network file system may hold a file for a while; the pass is done nevertheless
            say(f"{each.checkpoints} could not be removed ({error.strerror}): remove it by hand")


def _go_on(each: Pass) -> str:
    checkpoint = last_checkpoint(each.checkpoints)
    if checkpoint is None:
        return "The same command starts this pass again; it has no checkpoint (--ckpt.save_steps N keeps some)"
    return f"The same command goes on from {checkpoint}"


def _train(each: Pass, say: Say) -> int:
    """The exit status of the pass, negative for a signal. Whatever interrupts the wait ends the pass and its group."""
    command = [sys.executable, "-m", "openrlhf.cli.train_ppo_ray", *each.flags]
    before = signal.signal(signal.SIGTERM, _stopped)
    with subprocess.Popen(command, start_new_session=True, preexec_fn=_die_with_the_driver) as process:
        try:
            say(f"pass {each.number}: {_policy(each)} -> {each.folder}, process {process.pid}")
            return process.wait()
        finally:
            signal.signal(signal.SIGTERM, before)
            if process.poll() is None:
                _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, on which Ray's driver gives its actors up; SIGKILL for what is left after the grace."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(GRACE)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def _die_with_the_driver() -> None:
    """Runs in the new process: the kernel kills it when this one dies, even by SIGKILL. Linux only."""
    if hasattr(LIBC, "prctl"):
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _stopped(_signal: int, _frame: Any) -> None:
    raise SystemExit(128 + signal.SIGTERM)
