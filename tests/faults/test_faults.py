"""The faults that are quick enough for the suite (`tests/faults`); all are in the table."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults import crowds, disks, files, http2, http_requests, network, processes, requests
from tests.faults.bench import Bench, Fault

pytestmark = pytest.mark.servers

GROUPS = (processes, network, requests, crowds, http_requests, http2, disks, files)
QUICK = [fault for group in GROUPS for fault in group.FAULTS if fault.quick]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    with Bench(tmp_path_factory.mktemp("faults")) as made:
        yield made


@pytest.mark.parametrize("fault", QUICK, ids=lambda fault: fault.name)
def test_a_fault(bench: Bench, fault: Fault) -> None:
    """Each fault asserts what the client sees and what the server does."""
    outcome = fault.run(bench)
    assert outcome.client and outcome.server


@pytest.mark.parametrize("file", files.FILES, ids=lambda file: file.name)
def test_a_damaged_file_is_refused_in_one_line(bench: Bench, file: files.File) -> None:
    files.refused_by_loader(file, bench)
