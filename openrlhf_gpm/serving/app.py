"""The routes. FastAPI is imported here and nowhere else."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Header, HTTPException, Query, Request, Response
from fastapi.exceptions import RequestValidationError

from openrlhf_gpm import __version__
from openrlhf_gpm.serving import schemas, ui
from openrlhf_gpm.serving.batching import Batcher
from openrlhf_gpm.serving.bodies import read_groups, read_object, read_queries
from openrlhf_gpm.serving.cohort import Cohorts
from openrlhf_gpm.serving.gate import Gate, refusal
from openrlhf_gpm.serving.limits import Limits, Refused
from openrlhf_gpm.serving.metrics import Metrics


@dataclass(frozen=True, eq=False)
class Service:
    """What the routes need, and the defaults of /get_reward."""

    batcher: Batcher
    cohorts: Cohorts
    metrics: Metrics
    limits: Limits
    keys: list[str]

    model: dict[str, Any]
    """What /health says of it."""

    group_size: int | None
    reward: str
    prompt_from: str
    policy_eos: list[str]

    ui: bool
    """Whether / is the page for one group."""


def make_app(service: Service, on_failure: Callable[[BaseException], None]) -> Gate:
    """The ASGI application. The model is loaded when it starts; on_failure gets what that raises, or running it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        def done(task: asyncio.Task[None]) -> None:
            if not task.cancelled() and (error := task.exception()):
                on_failure(error)

        running = asyncio.create_task(service.batcher.run())
        running.add_done_callback(done)
        yield
        running.cancel()  # every request has its answer by now

    app = FastAPI(
        title="openrlhf-gpm",
        version=__version__,
        description="A General Preference Model judges the responses to a prompt against each other.",
        lifespan=lifespan,
        redoc_url=None,
    )

    @app.exception_handler(Refused)
    async def on_refused(request: Request, error: Refused) -> Response:
        status, headers, body = refusal(error, request.url.path)
        return Response(body, status, headers)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]  # its "input" would quote the user
        return await on_refused(request, Refused(422, ".".join(map(str, first["loc"][1:])), first["msg"]))

    @app.exception_handler(404)
    @app.exception_handler(405)
    async def on_unknown(request: Request, error: HTTPException) -> Response:
        text = "no such endpoint" if error.status_code == 404 else f"not by {request.method}"
        return await on_refused(request, Refused(error.status_code, "", f"{text}: see /openapi.json"))

    @app.exception_handler(Exception)
    async def on_error(request: Request, _: Exception) -> Response:
        return await on_refused(request, Refused(500, "", "the server failed: see its log"))

    if service.ui:
        document, headers = ui.page()

        @app.get("/", include_in_schema=False)
        async def page() -> Response:
            return Response(document, media_type="text/html", headers=headers)

    @app.get("/health", summary="Whether the process lives, and which model it serves")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "version": __version__, "model": service.model}

    @app.get("/ready", summary="Whether the model answers", responses={503: {"description": schemas.REASONS[503]}})
    async def ready() -> dict[str, Any]:
        if service.cohorts.stopped:
            raise Refused(503, "", "the server is stopping", retry_after=5)
        if not service.batcher.ready:
            raise Refused(503, "", "the model does not answer: it is being loaded, or has failed", retry_after=5)
        return {"status": "ready"}

    @app.get("/metrics", summary="Counters for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.post(
        "/score",
        summary="Groups to what `openrlhf-gpm score` writes of them",
        **schemas.described(schemas.GROUPS, schemas.GROUPS_EXAMPLE, schemas.results(True), schemas.REASONS),
    )
    async def score(request: Request) -> Response:
        return await asyncio.to_thread(_json, {"results": await _scored(request, service)})

    @app.post(
        "/embed",
        summary="Groups to embeddings and gates: K vectors per prompt, to compare later at no cost",
        **schemas.described(schemas.GROUPS, schemas.GROUPS_EXAMPLE, schemas.results(False), schemas.REASONS),
    )
    async def embed(request: Request) -> Response:
        if service.model["head"] == "pairwise":
            raise Refused(422, "", "a model with head pairwise has no embeddings: use /score")
        kept = ("id", "embeddings", "gate", "warnings")
        results = await _scored(request, service)
        embedded = [{name: one[name] for name in kept if name in one} for one in results]
        return await asyncio.to_thread(_json, {"results": embedded})

    reasons = schemas.REASONS | schemas.EXPIRED

    @app.post(
        "/get_reward",
        summary="OpenRLHF's remote reward protocol: one response per call, judged when its prompt's K are there",
        **schemas.described(schemas.QUERIES, schemas.QUERIES_EXAMPLE, schemas.REWARDS, reasons),
    )
    async def get_reward(
        request: Request,
        group_size: Annotated[int | None, Query(ge=2, description="K; default: its flag")] = None,
        reward: Annotated[Literal["score", "win_rate"] | None, Query(description="default: its flag")] = None,
        prompt_from: Annotated[Literal["prompts", "labels"] | None, Query(description="default: its flag")] = None,
        run: Annotated[str, Query(max_length=200, description="keeps the groups of several runs apart")] = "",
        x_group_size: Annotated[int | None, Header(ge=2, description="K; a query parameter goes first")] = None,
    ) -> Response:
        size = group_size or x_group_size or service.group_size
        if size is None:
            raise Refused(422, "group_size", "missing: add ?group_size=K to the URL, or start with --group_size K")
        service.limits.check_count("group_size", size, "max_responses", "responses")
        body = read_object(await request.body())
        source = prompt_from or service.prompt_from
        queries = read_queries(body, service.limits, source, service.policy_eos)
        service.cohorts.check_room(len(queries))
        members = [service.cohorts.join(run, prompt, response, size) for prompt, response in queries]
        try:
            # Shielded: the answers belong to the cohorts, which keep those that do not reach the client.
            answers = await _unless_left(request, _all(*(asyncio.shield(member.answer) for member in members)))
        except BaseException:
            for member in members:
                service.cohorts.leave(member)
            raise
        values = {name: [answer[name] for answer in answers] for name in answers[0]}
        rewards = values["mean_score" if (reward or service.reward) == "score" else "win_rate"]
        return _json({"rewards": rewards, "scores": rewards, "extra_logs": values})

    return Gate(app, service.keys, service.limits, service.metrics)


async def _scored(request: Request, service: Service) -> list[dict[str, Any]]:
    groups = read_groups(read_object(await request.body()), service.limits)
    return await _unless_left(request, service.batcher.score(groups, lambda i: f"groups[{i}]"))


async def _all(*answers: asyncio.Future[Any]) -> list[Any]:
    return list(await asyncio.gather(*answers))


async def _unless_left(request: Request, work: Coroutine[Any, Any, list[Any]]) -> list[Any]:
    """What `work` returns; it is cancelled, and Refused raised, when the client hangs up. The body has been read."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    working, leaving = asyncio.create_task(work), asyncio.create_task(left())
    try:
        await asyncio.wait([working, leaving], return_when=asyncio.FIRST_COMPLETED)
        if leaving.done():
            raise Refused(499, "", "the client hung up")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


def _json(value: Any) -> Response:
    body = json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    return Response(body, media_type="application/json")
