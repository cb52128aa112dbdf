"""Collects the responses of a prompt, which come one by one, until the group is whole or a deadline passes.

A *cohort* is a group that is not whole yet. Its members are calls that wait: each is one response, also where two
have the same text, because a policy may say the same thing twice. What becomes of a member:

complete    K responses came: judged as the group that they are.
expired     the deadline passed: 504, or with `incomplete` "score" and at least 2 responses:
incomplete  judged against those that had come;
late        came after that: judged against those that the others were judged against.
left        its client hung up before the group was whole: it is no member any more, and may come again.
repeated    its client hung up when the group was whole already: the same text's next call gets the answer.
stopped     the server stops: 503.
failed      the model failed on its group.
"""

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from openrlhf_gpm.config import Prompt
from openrlhf_gpm.data import Group
from openrlhf_gpm.serving.limits import Limits, Refused
from openrlhf_gpm.serving.metrics import Metrics

logger = logging.getLogger(__name__)

Key = tuple[str, str, int]
"""Run, prompt and K: what the members of a cohort have in common."""


@dataclass(eq=False)
class Member:
    """One response, and the future of what it is worth: mean_score, win_rate, cyclic_share and group_size."""

    key: Key
    response: str
    answer: asyncio.Future[dict[str, float]]

    left: bool = False
    """Whether its client hung up when the group was whole already."""


@dataclass(eq=False)
class Cohort:
    """A prompt and the members that have come so far; `timer` ends the wait."""

    key: Key
    prompt: Prompt
    members: list[Member] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None
    judged: list[str] = field(default_factory=list)
    """The responses that members were judged against when the deadline had passed."""

    late: int = 0


class Cohorts:
    """The cohorts of a server.

    Args:
        score: judges a group; what it raises, each member of the group gets.
        deadline: seconds from a cohort's first member until the wait ends; also how long an answer is kept.
        incomplete: "refuse" or "score", see the module.
        limits: `max_waiting` members.
        metrics: where to count.
    """

    def __init__(
        self,
        score: Callable[[Group], Awaitable[dict[str, Any]]],
        deadline: float,
        incomplete: str,
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self.score = score
        self.deadline = deadline
        self.incomplete = incomplete
        self.limits = limits
        self.metrics = metrics
        self.stopped = False
        self._open: dict[Key, Cohort] = {}
        self._past: dict[Key, Cohort] = {}  # judged incomplete, for late members
        self._kept: list[Member] = []  # their answers reached nobody
        self._waiting = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def check_room(self, count: int) -> None:
        """Raise Refused where so many more members cannot wait: 503, or 413 where they never could."""
        self.limits.check_count("query", count, "max_waiting", "queries")
        if self.stopped:
            raise Refused(503, "", "the server is stopping", retry_after=5)
        if self._waiting + count > self.limits.max_waiting:
            raise Refused(503, "", f"{self._waiting} responses wait already (--max_waiting)", retry_after=1)

    def join(self, run: str, prompt: Prompt, response: str, size: int) -> Member:
        """Add a response to its prompt's cohort of K = size >= 2. Its `answer` comes when the cohort is judged."""
        loop = asyncio.get_running_loop()
        key = (run, json.dumps(prompt, sort_keys=True), size)
        for kept in self._kept:
            if (kept.key, kept.response) == (key, response):
                self._kept.remove(kept)
                kept.left = False
                self._count("repeated")
                return kept
        member = Member(key, response, loop.create_future())
        past = self._past.get(key)
        if past is not None and len(past.judged) + past.late < size:
            past.late += 1
            self._add_waiting(1)
            self._judge(past, [member], "late")
            return member
        if key not in self._open:
            self._open[key] = cohort = Cohort(key, prompt)
            cohort.timer = loop.call_later(self.deadline, self._expire, cohort)
        cohort = self._open[key]
        cohort.members.append(member)
        self._add_waiting(1)
        if len(cohort.members) == size:
            self._close(cohort)
            self._judge(cohort, cohort.members, "complete")
        return member

    def leave(self, member: Member) -> None:
        """The member's call ends without its answer, because its client hung up or another of its queries failed."""
        cohort = self._open.get(member.key)
        if cohort is None or member not in cohort.members:
            member.left = True
            self._keep_if_left(member)
            return
        cohort.members.remove(member)
        self._done("left")
        member.answer.cancel()
        if not cohort.members:
            self._close(cohort)
        logger.warning("get_reward: a caller left; %d responses of prompt %s wait", len(cohort.members), _name(cohort))

    def stop(self) -> None:
        """Refuse who waits for others: they cannot come any more. Groups that are whole are judged."""
        self.stopped = True
        for cohort in list(self._open.values()):
            self._close(cohort)
            self._refuse(cohort.members, Refused(503, "", "the server is stopping", retry_after=5), "stopped")

    def _expire(self, cohort: Cohort) -> None:
        self._close(cohort)
        came, size = len(cohort.members), cohort.key[2]
        scored = self.incomplete == "score" and came >= 2
        logger.warning(
            "get_reward: %d of the %d responses of prompt %s came within %g s: %s",
            came,
            size,
            _name(cohort),
            self.deadline,
            "judged without the others" if scored else "refused",
        )
        if scored:
            cohort.judged = [member.response for member in cohort.members]
            self._past[cohort.key] = cohort
            asyncio.get_running_loop().call_later(self.deadline, self._forget, cohort)
            self._judge(cohort, cohort.members, "incomplete")
        else:
            text = (
                f"{came} of {size} responses of this prompt came within {self.deadline:g} s (--deadline): send the "
                "others too, or another group_size"
            )
            self._refuse(cohort.members, Refused(504, "query", text), "expired")

    def _judge(self, cohort: Cohort, members: list[Member], outcome: str) -> None:
        task = asyncio.create_task(self._answer(cohort, members, outcome))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, cohort: Cohort, members: list[Member], outcome: str) -> None:
        responses = [member.response for member in members]
        before = cohort.judged if outcome == "late" else []
        try:
            result = await self.score(Group(cohort.prompt, [*before, *responses]))
        except Exception as error:  # the members' calls raise it
            self._refuse(members, error, "failed")
            return
        for i, member in enumerate(members, start=len(before)):
            self._done(outcome)
            if not member.answer.done():
                member.answer.set_result(
                    {
                        "mean_score": result["mean_scores"][i],
                        "win_rate": result["win_rates"][i],
                        "cyclic_share": result["cyclic_share"],
                        "group_size": len(result["mean_scores"]),
                    }
                )
                self._keep_if_left(member)

    def _refuse(self, members: list[Member], error: Exception, outcome: str) -> None:
        for member in members:
            self._done(outcome)
            if not member.answer.done():
                member.answer.set_exception(error)

    def _keep_if_left(self, member: Member) -> None:
        """Keep an answer that reaches nobody, for one deadline; an error is not kept."""
        answer = member.answer
        if not member.left or not answer.done() or answer.cancelled() or answer.exception() is not None:
            return
        self._kept.append(member)
        asyncio.get_running_loop().call_later(self.deadline, self._drop, member)

    def _drop(self, member: Member) -> None:
        if member in self._kept:
            self._kept.remove(member)

    def _forget(self, cohort: Cohort) -> None:
        if self._past.get(cohort.key) is cohort:
            del self._past[cohort.key]

    def _close(self, cohort: Cohort) -> None:
        del self._open[cohort.key]
        assert cohort.timer is not None
        cohort.timer.cancel()

    def _done(self, outcome: str) -> None:
        self._add_waiting(-1)
        self._count(outcome)

    def _count(self, outcome: str) -> None:
        self.metrics.members.labels(outcome).inc()

    def _add_waiting(self, count: int) -> None:
        self._waiting += count
        self.metrics.waiting.set(self._waiting)


def _name(cohort: Cohort) -> str:
    """What the log calls a prompt, whose text it must not hold."""
    return hashlib.sha256(cohort.key[1].encode()).hexdigest()[:8]
