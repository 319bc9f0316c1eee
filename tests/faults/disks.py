"""Full disks that hold the log, the run folder or the ready file, and a /dev/shm that is too small.

The full disks are small tmpfs mounts (this needs root); /dev/full is one that is always full.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

from judge_client.client import JudgeClient
from judge_client.errors import JudgeClientError
from judge_client.wire import GenerateRequest
from tests.faults.bench import (
    PATIENCE_S,
    Bench,
    Fault,
    Outcome,
    Remains,
    Watched,
    answer,
    ended,
    said,
)
from tests.faults.processes import TARGET, pid_of, whole
from tests.triton_world import Stream


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kib}k", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


def fill(folder: Path) -> None:
    """Fill a file system to the last byte."""
    with (folder / "filler").open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"\0" * 1024)
    with (folder / "filler").open("ab", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"\0")


def log_full_from_the_start(bench: Bench) -> Outcome:
    began = time.monotonic()
    with bench.start(bench.document(), log=Path("/dev/full")) as server:
        remains = Remains(server)
        text = answer(server)
        seconds = time.monotonic() - began
        assert text == answer(bench.shared)
        assert server.stop() == 0
        return Outcome("the same answer", seconds, "serves, exit 0", remains.left())


def log_fills_up(bench: Bench) -> Outcome:
    """The disk fills up while the server runs; then a rank dies."""
    folder = bench.place()
    with (
        small_disk(folder / "disk", 256) as disk,
        bench.start(bench.document(), log=disk / "log") as server,
    ):
        fill(disk)
        remains = Remains(server)
        text = answer(server)
        assert text == answer(bench.shared)
        stream = Watched(server.url).running()
        os.kill(pid_of(server, TARGET), signal.SIGKILL)
        began = time.monotonic()
        seen = stream.seen()
        assert server.wait() == 1
        after = "serves; the rank's death ends it, exit 1, with nothing in the log"
        return Outcome(f"the same answer; then {seen}", stream.ended - began, after, remains.left())


def run_folder_full_from_the_start(bench: Bench) -> Outcome:
    """Python then uses the next folder for temporary files that is writable."""
    folder = bench.place()
    began = time.monotonic()
    with small_disk(folder / "disk", 64) as disk, ExitStack() as stack:
        fill(disk)
        server = stack.enter_context(bench.start(bench.document(), temporary=disk))
        remains = Remains(server)
        text = answer(server)
        seconds = time.monotonic() - began
        assert text == answer(bench.shared)
        assert not list(disk.glob("judge-decoding-*"))
        assert server.stop() == 0
        return Outcome("the same answer", seconds, "serves, from another folder", remains.left())


def run_folder_fills_up(bench: Bench) -> Outcome:
    """Then a rank dies, and the notes of which process died first cannot be written."""
    folder = bench.place()
    with (
        small_disk(folder / "disk", 1024) as disk,
        bench.start(bench.document(), temporary=disk) as server,
    ):
        fill(disk)
        remains = Remains(server)
        assert answer(server) == answer(bench.shared)
        stream = Watched(server.url).running()
        os.kill(pid_of(server, TARGET), signal.SIGKILL)
        began = time.monotonic()
        seen = stream.seen()
        after = ended(server, 1)
        return Outcome(f"the same answer; then {seen}", stream.ended - began, after, remains.left())


def ready_file_cannot_be_written(bench: Bench) -> Outcome:
    folder = bench.place()
    with small_disk(folder / "disk", 64) as disk:
        fill(disk)
        began = time.monotonic()
        server = bench.start(bench.document(), ready_file=disk / "ready.json")
        try:
            after = ended(server, 1)
            assert "cannot write the ready file" in after and "No space left" in after
            seconds = time.monotonic() - began
            return Outcome("cannot connect", seconds, after, Remains(server).left())
        finally:
            server.stop()


def own_shm(mib: int) -> list[str]:
    """Words before a command: it gets a /dev/shm of this size, in its own mount namespace."""
    script = f'mount -t tmpfs -o size={mib}m tmpfs /dev/shm && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", script, "serve"]


def shm_too_small(bench: Bench) -> Outcome:
    """/dev/shm has 2 MB."""
    began = time.monotonic()
    server = bench.start(bench.document(), prefix=own_shm(2))
    try:
        after = ended(server, 2)
        assert "/dev/shm has 2 MB free" in said(server) and "--shm-size=1g" in said(server)
        seconds = time.monotonic() - began
        return Outcome("cannot connect", seconds, after, Remains(server).left())
    finally:
        server.stop()


def large_requests_in_a_small_shm(bench: Bench) -> Outcome:
    """/dev/shm has 64 MB, a container's default. Twenty clients send texts of 3 and 30 MB."""
    with bench.start(bench.document(), prefix=own_shm(64)) as server:
        remains, stream = Remains(server), Watched(server.url)
        texts = ["x" * size for size in (3_000_000, 30_000_000) for _ in range(10)]
        began = time.monotonic()
        with ThreadPoolExecutor(20) as pool:
            errors = list(pool.map(lambda text: refused(server.url, text), texts))
        seconds = time.monotonic() - began
        no_room = "the server has no room for a request of this size; shorten it or try again"
        too_long = "prompt: 3000000 bytes are more than server.max_prompt_bytes 1000000"
        assert set(errors[:10]) <= {too_long, no_room}
        assert set(errors[10:]) == {no_room}
        stream.seen()
        assert stream.answer.text == whole(server)
        assert answer(server) == answer(bench.shared)
        shm = Path(f"/proc/{pid_of(server, 'tritonserver')}/root/dev/shm")
        assert sum(one.stat().st_size for one in shm.iterdir()) < 64 * 2**20
        assert server.stop() == 0, server.output
        return Outcome(f"`{errors[-1]}`", seconds, "goes on", remains.left())


def shm_fills_up(bench: Bench) -> Outcome:
    """Something else takes all of /dev/shm; then an answer is larger than its region is now."""
    with bench.start(bench.document(), prefix=own_shm(64)) as server:
        fill(Path(f"/proc/{pid_of(server, 'tritonserver')}/root/dev/shm"))
        remains = Remains(server)
        began = time.monotonic()
        with Stream(server) as stream:
            text = np.array([[b"\1" * 900_000]], object)  # six times as long in JSON
            ids = np.array([[1, 2, 3]], np.int32)
            stream.send(model="judge_decoding", input_ids=ids, input_text=text, max_tokens=4)
            with pytest.raises(InferenceServerException) as caught:
                stream.next(PATIENCE_S)
        seconds = time.monotonic() - began
        message = str(caught.value)
        assert re.match("server: the answer could not be sent .*No space left on device", message)
        assert answer(server) == answer(bench.shared)
        assert server.stop() == 0, server.output
        return Outcome(f"`{message[:36]}`", seconds, "goes on", remains.left())


def refused(url: str, text: str) -> str:
    """The error for this prompt."""
    with JudgeClient(url, timeout=PATIENCE_S) as client, pytest.raises(JudgeClientError) as caught:
        client.generate(GenerateRequest(text))
    return str(caught.value)


GROUP = "disk"
FAULTS = [
    Fault(GROUP, "log on a full disk from the start", log_full_from_the_start, quick=True),
    Fault(GROUP, "disk of the log fills up, then a rank dies", log_fills_up),
    Fault(GROUP, "disk of $TMPDIR is full from the start", run_folder_full_from_the_start),
    Fault(GROUP, "disk of the run folder fills up, then a rank dies", run_folder_fills_up),
    Fault(GROUP, "disk of the ready file is full", ready_file_cannot_be_written),
    Fault(GROUP, "/dev/shm of 2 MB", shm_too_small, quick=True),
    Fault(GROUP, "/dev/shm fills up, then an answer of 5 MB", shm_fills_up),
    Fault(GROUP, "/dev/shm of 64 MB, ten texts of 3 and of 30 MB", large_requests_in_a_small_shm),
]
