"""What becomes of responses that come late, twice or not at all: the cohorts alone, with a real model."""

import asyncio

import pytest

from openrlhf_gpm.serving.cohort import Cohorts
from openrlhf_gpm.serving.limits import Limits, Refused
from openrlhf_gpm.serving.metrics import Metrics

PROMPT = "Name a prime."


class World:
    """Cohorts over the offline scorer, and what they counted."""

    def __init__(self, gpm, deadline=0.2, incomplete="refuse", **limits):
        self.gpm = gpm
        self.metrics = Metrics()
        self.scoring = asyncio.Event()  # a test holds the model back with it
        self.scoring.set()
        self.cohorts = Cohorts(self.score, deadline, incomplete, Limits(**limits), self.metrics)

    async def score(self, group):
        await self.scoring.wait()
        return self.gpm.score(group.prompt, group.responses)

    def join(self, response, size=3, prompt=PROMPT):
        return self.cohorts.join("", prompt, response, size)

    def counts(self):
        samples = next(iter(self.metrics.members.collect())).samples
        return {s.labels["outcome"]: int(s.value) for s in samples if s.name.endswith("_total")}

    def waiting(self):
        return self.metrics.registry.get_sample_value("gpm_waiting_responses")


async def worth(*members):
    return [(await member.answer)["mean_score"] for member in members]


async def refusals(*members):
    found = await asyncio.gather(*(member.answer for member in members), return_exceptions=True)
    assert all(isinstance(error, Refused) for error in found), found
    return [(error.status, error.field) for error in found]


def test_a_missing_member_ends_the_wait_with_an_error_and_no_number(gpm):
    async def play():
        world = World(gpm)
        members = [world.join("7"), world.join("9")]
        assert world.waiting() == 2
        assert await refusals(*members) == [(504, "query")] * 2
        assert world.counts() == {"expired": 2}
        assert world.waiting() == 0
        again = [world.join(text) for text in ("7", "9", "11")]  # they try again, and the third has come
        assert await worth(*again) == pytest.approx(gpm.score(PROMPT, ["7", "9", "11"])["mean_scores"], abs=1e-5)

    asyncio.run(play())


def test_with_incomplete_score_those_that_came_are_compared_and_a_late_one_with_them(gpm):
    async def play():
        world = World(gpm, incomplete="score")
        early = [world.join("7"), world.join("9")]
        assert await worth(*early) == pytest.approx(gpm.score(PROMPT, ["7", "9"])["mean_scores"], abs=1e-5)
        assert (await early[0].answer)["group_size"] == 2
        late = world.join("11")
        assert await worth(late) == pytest.approx(gpm.score(PROMPT, ["7", "9", "11"])["mean_scores"][2:], abs=1e-5)
        assert world.counts() == {"incomplete": 2, "late": 1}
        surplus = world.join("13")  # the fourth of three: a new group, of which nobody else comes
        assert await refusals(surplus) == [(504, "query")]
        assert world.waiting() == 0

    asyncio.run(play())


def test_a_single_response_is_never_given_a_number(gpm):
    async def play():
        assert await refusals(World(gpm, incomplete="score").join("7")) == [(504, "query")]

    asyncio.run(play())


def test_an_answer_that_reached_nobody_is_kept_for_the_same_texts_next_call(gpm):
    async def play():
        world = World(gpm, deadline=5.0)
        world.scoring.clear()
        members = [world.join(text) for text in ("7", "9", "11")]
        world.cohorts.leave(members[1])  # while the model computes
        world.scoring.set()
        expected = gpm.score(PROMPT, ["7", "9", "11"])["mean_scores"]
        assert await worth(members[0], members[2]) == pytest.approx([expected[0], expected[2]], abs=1e-5)
        assert await worth(world.join("9")) == pytest.approx([expected[1]], abs=1e-5)
        assert world.counts() == {"complete": 3, "repeated": 1}
        assert not world.join("9").answer.done()  # once; this one is of a new group

    asyncio.run(play())


def test_a_member_that_left_makes_room_and_an_empty_cohort_has_no_deadline(gpm):
    async def play():
        world = World(gpm, max_waiting=2)
        first, second = world.join("7"), world.join("9")
        with pytest.raises(Refused) as full:
            world.cohorts.check_room(1)
        assert (full.value.status, full.value.retry_after) == (503, 1)
        world.cohorts.leave(first)
        world.cohorts.leave(second)
        world.cohorts.check_room(2)
        assert world.counts() == {"left": 2}
        assert world.waiting() == 0

    asyncio.run(play())


def test_a_stop_refuses_who_waits_and_answers_groups_that_are_whole(gpm):
    async def play():
        world = World(gpm)
        world.scoring.clear()
        whole = [world.join(text) for text in ("7", "9", "11")]
        waits = world.join("7", prompt="Another.")
        world.cohorts.stop()
        assert await refusals(waits) == [(503, "")]
        world.scoring.set()
        assert await worth(*whole) == pytest.approx(gpm.score(PROMPT, ["7", "9", "11"])["mean_scores"], abs=1e-5)
        with pytest.raises(Refused, match="stopping"):
            world.cohorts.check_room(1)

    asyncio.run(play())


def test_what_the_scorer_refuses_every_member_gets(gpm):
    async def play():
        world = World(gpm)

        async def fail(_):
            raise Refused(500, "", "the model failed")

        world.cohorts.score = fail
        assert await refusals(*(world.join(text) for text in "abc")) == [(500, "")] * 3
        assert world.counts() == {"failed": 3}

    asyncio.run(play())
