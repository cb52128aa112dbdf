"""Groups of all requests share batches: what waits while the model computes goes into its next call.

One thread tokenises and one thread runs the model; the event loop does neither. No request waits for a batch to fill.
"""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

from openrlhf_gpm.data import Group
from openrlhf_gpm.samples.batch import unique_groups
from openrlhf_gpm.samples.forest import forest_pays, token_counts
from openrlhf_gpm.samples.formatting import Formatter, ResponseError
from openrlhf_gpm.scoring.scorer import GPM, sample_texts
from openrlhf_gpm.serving.limits import Limits, Refused
from openrlhf_gpm.serving.metrics import Metrics

logger = logging.getLogger(__name__)

PROBE = Group("Hello", ["Hello!", "Bye."])


@dataclass(frozen=True, eq=False)
class Job:
    """One group, and the future of its result."""

    group: Group

    tokens: int
    """Of all its samples."""

    computed: int
    """Of these, what the model computes."""

    answer: asyncio.Future[dict[str, Any]]


class Batcher:
    """A model, and the groups that wait for it.

    Args:
        load: makes the `GPM`; called by `run`, in the model's thread.
        formatter: the model's, for the thread that tokenises: two threads must not share a tokenizer.
        limits: of a request and of the queue.
        metrics: where to count.
    """

    def __init__(self, load: Callable[[], GPM], formatter: Formatter, limits: Limits, metrics: Metrics) -> None:
        self.load = load
        self.formatter = formatter
        self.limits = limits
        self.metrics = metrics
        self.ready = False
        self._gpm: GPM | None = None
        self._waiting: deque[Job] = deque()
        self._queued = 0  # tokens
        self._speed = 1.0  # tokens per second, of the last batches
        self._arrived = asyncio.Event()
        self._model = ThreadPoolExecutor(1, "model")
        self._tokenizer = ThreadPoolExecutor(1, "tokenizer")

    async def run(self) -> None:
        """Load the model, let it answer once, then score what waits until cancelled. Raises what loading raises."""
        loop = asyncio.get_running_loop()
        self._gpm = await loop.run_in_executor(self._model, self.load)
        await loop.run_in_executor(self._model, self._score, [PROBE])
        self._set_ready(True)
        while True:
            await self._arrived.wait()
            await self._score_batch(self._take())

    async def score(self, groups: Sequence[Group], field: Callable[[int], str]) -> list[dict[str, Any]]:
        """What `GPM.score` says of each group, in order; an id stays None where none was given.

        field: the name of group i in the request, for messages.

        Raises:
            Refused: 422 for a group that the formatter rejects; 413 for too many tokens; 503 where the model is not
                there yet, or the queue has no room; 500 where the model fails.
        """
        if self._gpm is None:
            raise Refused(503, "", "the model is being loaded: try again", retry_after=5)
        loop = asyncio.get_running_loop()
        counts = await loop.run_in_executor(self._tokenizer, self._count, list(groups), field)
        total = sum(full for full, _ in counts)
        self.limits.check_count(field(0).partition("[")[0], total, "max_tokens", "tokens")
        if self._queued + total > self.limits.max_queue_tokens:
            wait = min(60, max(1, math.ceil(self._queued / self._speed)))
            raise Refused(503, "", f"{self._queued} tokens wait already: try again in {wait} s", retry_after=wait)
        jobs = [Job(g, full, new, loop.create_future()) for g, (full, new) in zip(groups, counts, strict=True)]
        self._waiting.extend(jobs)
        self._add_queued(total)
        self._arrived.set()
        results = await asyncio.gather(*(job.answer for job in jobs))  # cancelled with this call: then not computed
        return [result | {"id": group.id} for result, group in zip(results, groups, strict=True)]

    async def score_one(self, group: Group) -> dict[str, Any]:
        """`score` of the group that queries of /get_reward make up."""
        return (await self.score([group], lambda _: "query"))[0]

    def _count(self, groups: list[Group], field: Callable[[int], str]) -> list[tuple[int, int]]:
        """Tokens of each group: of all samples, and those that are computed."""
        return [self._count_group(group, field(i)) for i, group in enumerate(groups)]

    def _count_group(self, group: Group, field: str) -> tuple[int, int]:
        texts = sample_texts(self._loaded.config, group.responses)
        try:
            samples = self.formatter.encode_group(group.prompt, texts)
        except ResponseError as error:
            where = field if self._loaded.config.head == "pairwise" else f"{field}.responses[{error.index}]"
            raise Refused(422, where, str(error)) from error
        except ValueError as error:
            raise Refused(422, field, str(error)) from error
        if not samples:  # head "pairwise", one response
            return 0, 0
        unique, _ = unique_groups([samples])
        full, _ = token_counts([samples])
        computed, forest = token_counts(unique)
        shares = self._loaded.backend.share_prompt and forest_pays(unique, by_length=True)
        return full, forest if shares else computed

    async def _score_batch(self, jobs: list[Job]) -> None:
        wanted = [job for job in jobs if not job.answer.cancelled()]
        start = time.perf_counter()
        groups = [job.group for job in wanted]
        outcomes = await asyncio.get_running_loop().run_in_executor(self._model, self._outcomes, groups)
        tokens, computed = sum(job.tokens for job in wanted), sum(job.computed for job in wanted)
        if tokens:
            self._speed = tokens / (time.perf_counter() - start)
            self.metrics.fill.observe(computed / self._loaded.backend.batch_tokens)
        self.metrics.tokens.inc(tokens)
        self.metrics.shared.inc(tokens - computed)
        self._add_queued(-sum(job.tokens for job in jobs))
        for job, outcome in zip(wanted, outcomes, strict=True):
            self._settle(job, outcome)

    def _take(self) -> list[Job]:
        """The first jobs that wait, until they fill a pass of the model; at least one."""
        jobs = [self._waiting.popleft()]
        room = self._loaded.backend.batch_tokens - jobs[0].computed
        while self._waiting and self._waiting[0].computed <= room:
            jobs.append(self._waiting.popleft())
            room -= jobs[-1].computed
        if not self._waiting:
            self._arrived.clear()
        return jobs

    def _outcomes(self, groups: list[Group]) -> list[dict[str, Any] | Exception]:
        """In the model's thread: a result or an error per group. Where the model fails, each group is tried alone."""
        if not groups:
            return []
        try:
            return list(self._score(groups))
        except Exception as error:
            logger.exception("the model failed on %d groups", len(groups))
            return [error] if len(groups) == 1 else [self._outcomes([group])[0] for group in groups]

    def _score(self, groups: Sequence[Group]) -> list[dict[str, Any]]:
        """The scorer's results. Ids stay outside: they are the user's, and an error's text may go to the log."""
        return list(self._loaded.score_groups([replace(group, id=None) for group in groups], finite="nan"))

    def _settle(self, job: Job, outcome: dict[str, Any] | Exception) -> None:
        self._set_ready(not isinstance(outcome, Exception))
        failed = isinstance(outcome, Exception) or outcome["mean_scores"] is None
        (self.metrics.failures if failed else self.metrics.groups).inc()
        if job.answer.cancelled():
            return
        if isinstance(outcome, Exception):
            job.answer.set_exception(
                Refused(500, "", f"the model failed ({type(outcome).__name__}): see the server's log")
            )
        elif failed:
            text = "the model's embeddings are not finite: start the server with --dtype fp32, or check the checkpoint"
            job.answer.set_exception(Refused(500, "", text))
        else:
            job.answer.set_result(outcome)

    @property
    def _loaded(self) -> GPM:
        assert self._gpm is not None
        return self._gpm

    def _set_ready(self, ready: bool) -> None:
        self.ready = ready
        self.metrics.ready.set(ready)

    def _add_queued(self, tokens: int) -> None:
        self._queued += tokens
        self.metrics.queue.set(self._queued)
