"""Thousands of bad and odd requests to a real server: none ends it, none keeps a slot, and a stream
beside them goes on with the same text.

`tests/attacks` has the grammar, and runs far more cases. The seed is fixed, so that a
failure can be reproduced.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.attacks import fuzz
from tests.attacks.canary import Canary
from tests.attacks.fuzz import Kinds
from tests.conftest import write_judge
from tests.triton_world import Serving, ask, text, wait_for

pytestmark = pytest.mark.servers

GRPC_CASES, HTTP_CASES = 1600, 400
SEED = 20240519
GOOD = {"text_input": "The good request", "max_tokens": 12, "ignore_eos": True}
STALL_S = 10.0
"""Far more than a busy machine needs."""


@pytest.fixture(scope="module")
def server(
    tiny_target: Path, tiny_draft: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("fuzz")
    write_judge(folder / "judge.safetensors", tiny_target, scale=0.02, seed=4)
    document = {
        "name": "tiny",
        "dtype": "float32",
        "target": {"model": str(tiny_target)},
        "draft": {"model": str(tiny_draft)},
        "judge": {"path": "judge.safetensors"},
        "max_draft_len": 5,
        "limits": {"max_sequences": 4, "max_context": 256, "max_tokens": 220},
        "server": {"max_queue": 64, "max_prompt_bytes": 2000, "drain_s": 5},
    }
    path = folder / "deployment.yaml"
    path.write_text(yaml.safe_dump(document))
    with Serving(path, folder) as running:
        yield running
        assert running.stop() == 0, running.output


@pytest.fixture(scope="module")
def canary(server: Serving) -> Iterator[Canary]:
    with Canary(server.url, tokens=220) as made:
        yield made


@pytest.fixture(scope="module")
def good(server: Serving) -> str:
    return text(ask(server, **GOOD))


def unharmed(server: Serving, good: str) -> None:
    """Every slot is free, the same processes run, and a good request gets the same answer."""
    assert server.process.poll() is None, server.output
    wait_for(
        lambda: server.metric("num_requests_running") + server.metric("num_requests_waiting") == 0,
        "the slots to be free",
    )
    assert server.metric("kv_slots_used") == 0
    assert text(ask(server, **GOOD)) == good


def totals(kinds: Kinds) -> Counter[str]:
    """How they ended -> number of cases."""
    found = Counter[str]()
    for (_, ended), count in kinds.items():
        found[ended] += count
    return found


def test_grpc_requests_that_are_almost_right(server: Serving, good: str, canary: Canary) -> None:
    before = server.processes()
    with canary.watching() as seen:
        kinds = fuzz.over_grpc(server, GRPC_CASES, SEED)
    assert not seen.wrong and seen.streams and seen.gap_s < STALL_S, seen
    # Both sides of the contract occurred often, with signed orders too.
    found = totals(kinds)
    assert found["answer"] > GRPC_CASES / 20 and found["error"] > GRPC_CASES / 5, kinds
    assert kinds["postprocessing", "answer"] and kinds["postprocessing", "error"] > 50, kinds
    unharmed(server, good)
    assert server.processes() == before


def test_http_bodies_that_are_almost_right(server: Serving, good: str, canary: Canary) -> None:
    before = server.processes()
    with canary.watching() as seen:
        kinds = fuzz.over_http(server, HTTP_CASES, SEED + 1)
    assert not seen.wrong and seen.streams and seen.gap_s < STALL_S, seen
    found = totals(kinds)
    assert found["200"] > HTTP_CASES / 20 and found["400"] > HTTP_CASES / 20, kinds
    unharmed(server, good)
    assert server.processes() == before
