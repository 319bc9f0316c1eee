"""The load scripts' arithmetic, and how the client reports a refusal."""

from __future__ import annotations

import asyncio
from typing import Any

from clients.load import overload
from clients.load.overload import Phase, RequestOutcome
from judge_client.errors import JudgeClientError, ServerBusy, refusal


def test_a_refusal_carries_its_advice() -> None:
    busy = refusal(
        "server: RESOURCE_EXHAUSTED: 64 requests are waiting already (server.max_queue); "
        "try again in 3.2 s"
    )
    assert isinstance(busy, ServerBusy)
    assert (busy.queued, busy.retry_after_s) == (64, 3.2)
    assert type(refusal("prompt: it is empty")) is JudgeClientError


def answer(sent: float, *arrivals: tuple[float, int], reason: str = "length") -> RequestOutcome:
    return RequestOutcome(sent, arrivals[0][0], arrivals[-1][0], list(arrivals), reason)


def refused(sent: float, end: float) -> RequestOutcome:
    return RequestOutcome(sent, end=end, reason="refused")


def test_goodput_counts_what_came_within_the_phase_of_answers_that_came_to_their_end() -> None:
    early = answer(5, (8, 3), (12, 10))  # sent before; 7 of its tokens come within
    whole = answer(10, (11, 2), (19, 10))
    late = answer(18, (19, 4), (25, 10))  # 4 within
    cut = answer(11, (12, 5), (13, 6), reason="deadline")
    everything = [early, whole, late, cut, refused(12, 12.25), refused(13, 13.75)]
    found = Phase(10, 20, everything[1:]).summary(everything)
    assert found["goodput_tokens_per_s"] == (7 + 10 + 4) / 10
    assert found["answers_per_s"] == 2 / 10  # early and whole end within
    assert found["requests"] == 5
    assert found["ends"] == {"deadline": 1, "length": 2, "refused": 2}
    assert (found["first_token_s_p50"], found["first_token_s_p90"]) == (1, 1)
    assert (found["refusal_s_p50"], found["refusal_s_max"]) == (0.5, 0.75)


def test_quantiles_of_few_and_none() -> None:
    assert overload.quantile([], 0.9) is None
    assert overload.quantile([1.0], 0.9) == 1.0
    assert overload.quantile(list(range(10)), 0.9) == 9


def held(**changes: Any) -> list[bool]:
    results = {
        "goodput_ratio": 0.95,
        "goodput_after_ratio": 0.95,
        "memory": {"growth_percent": 2.0},
        "recovery_s": 10.0,
        "idle_s": 10.0,
        "failures": 0,
    }
    return [bound["held"] for bound in overload.bounds(results | changes)]


def test_each_bound_is_judged_for_itself() -> None:
    assert held() == [True] * 6

    def broken(place: int) -> list[bool]:
        return [i != place for i in range(6)]

    assert held(goodput_ratio=0.94) == broken(0)
    assert held(goodput_after_ratio=0.94) == broken(1)
    assert held(memory={"growth_percent": 2.01}) == broken(2)
    assert held(recovery_s=10.1) == held(recovery_s=None) == broken(3)
    assert held(idle_s=10.1) == held(idle_s=None) == broken(4)
    assert held(failures=1) == broken(5)


def test_arrivals_are_at_random_and_do_not_wait_for_answers() -> None:
    class Slow(overload.OverloadClients):
        async def ask(self) -> RequestOutcome:
            outcome = RequestOutcome(0.0)
            self.everything.append(outcome)
            await asyncio.sleep(60)
            return outcome

    async def go() -> int:
        load = Slow(None, overload.Random(1), 1, None)  # type: ignore[arg-type]
        await load.flood(rate=1000.0, seconds=0.2)
        sent = len(load.everything)
        assert len(load.flooding) == sent  # none was answered
        for task in load.flooding:
            task.cancel()
        return sent

    expected, at, random = 0, 0.0, overload.Random(1)
    while (at := at + random.expovariate(1000.0)) < 0.2:
        expected += 1
    assert asyncio.run(go()) == expected
