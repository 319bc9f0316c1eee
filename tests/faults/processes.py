"""Ranks, stubs, server and launcher killed, paused or slowed: at the start, later, at the end."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from http.client import HTTPConnection, HTTPException
from pathlib import Path

from clients.server import descendants
from judge_client.client import JudgeClient
from tests.faults.bench import (
    LONG,
    SHORT,
    Bench,
    Fault,
    Outcome,
    Remains,
    Watched,
    answer,
    ended,
    said,
)
from tests.triton_world import Serving, free_ports, wait_for

DRAFT, TARGET = "rank 1 (draft)", "rank 2 (target)"
CORE = "the judge_decoding model"
STUBS = (CORE, "the preprocessing model", "the postprocessing model")
LAUNCHER, MPIEXEC = "launcher", "mpiexec"


def pid_of(server: Serving, role: str) -> int:
    if role == LAUNCHER:
        return server.process.pid
    if role == MPIEXEC:
        found = descendants(server.process.pid)
        return next(pid for pid, (name, _) in sorted(found.items()) if name.startswith(MPIEXEC))
    return server.processes()[role]


def killed(role: str, number: signal.Signals, bench: Bench, *, ranks: int = 1) -> Outcome:
    """The process is killed in the middle of a stream."""
    with bench.server(ranks=ranks) as server:
        remains, stream = Remains(server), Watched(server.url).running()
        pid = pid_of(server, role)
        os.kill(pid, number)
        began = time.monotonic()
        seen = stream.seen()
        assert stream.error is not None
        if role == LAUNCHER:
            assert server.wait() == -number
            return Outcome(seen, stream.ended - began, "stops with it", remains.left())
        after = ended(server, 1)
        assert said(server).startswith(f"{role} (pid {pid}) died"), said(server)
        return Outcome(seen, stream.ended - began, after, remains.left())


def paused_too_long(role: str, bench: Bench, *, ranks: int = 1) -> Outcome:
    """A rank that does not answer counts as dead after `ranks.timeout_s`, here 4 s."""
    document = bench.document(ranks=ranks)
    document["ranks"]["timeout_s"] = 4
    with bench.start(document) as server:
        remains, stream = Remains(server), Watched(server.url).running()
        os.kill(pid_of(server, role), signal.SIGSTOP)
        began = time.monotonic()
        seen = stream.seen()
        assert stream.error is not None
        after = ended(server, 1)
        assert re.search(rf"from {re.escape(role)} on host", said(server)), said(server)
        return Outcome(seen, stream.ended - began, after, remains.left())


def paused_for_ever(role: str, bench: Bench) -> Outcome:
    """No request's time-out covers this process. `server.stall_timeout_s` is 3 here."""
    document = bench.document(ranks=0)
    document["server"]["stall_timeout_s"] = 3
    with bench.start(document) as server:
        remains, stream = Remains(server), Watched(server.url).running()
        pid = pid_of(server, role)
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        seen = stream.seen()
        assert stream.error is not None
        after = ended(server, 1)
        expected = f"{role} (pid {pid}) was stopped for 3 s (server.stall_timeout_s)"
        assert said(server) == f"{expected}; everything is stopped"
        return Outcome(seen, stream.ended - began, after, remains.left())


def paused_a_while(names: Sequence[str], seconds: float, bench: Bench) -> Outcome:
    """A request is under way and another one arrives.

    Regression: Triton gave a Python model one second, and then the whole server ended."""
    server = bench.shared
    expected = whole(server)
    stream = Watched(server.url).running()
    pids = [pid_of(server, name) for name in names]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    try:
        second = Watched(server.url, SHORT)
        time.sleep(seconds)
        assert second.is_alive()
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
    seen = stream.seen()
    assert stream.answer.text == expected
    assert second.seen() == seen, second.error
    late = f"{seen}, {seconds:g} seconds late"
    return Outcome(late, second.ended - began, "goes on", bench.unharmed())


@contextmanager
def braked(pid: int) -> Iterator[None]:
    """The process runs for only 5 ms of every 50."""
    over = threading.Event()

    def brake() -> None:
        while not over.is_set():
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.045)
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.005)

    thread = threading.Thread(target=brake)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def slowed(role: str, bench: Bench) -> Outcome:
    server = bench.shared
    stream = Watched(server.url).running()
    began = time.monotonic()
    with braked(pid_of(server, role)):
        seen = stream.seen()
    assert stream.answer.text == whole(server)
    return Outcome(f"{seen}, the same, slower", stream.ended - began, "goes on", bench.unharmed())


def whole(server: Serving) -> str:
    """The long answer without a fault."""
    with JudgeClient(server.url, timeout=300) as client:
        return client.generate(LONG).text


def killed_at_the_start(bench: Bench) -> Outcome:
    server = bench.start(bench.document())
    try:
        wait_for(lambda: server.temporary.is_dir() and DRAFT in roles(server), "the rank's note")
        remains = Remains(server)
        os.kill(server.processes()[DRAFT], signal.SIGKILL)
        began = time.monotonic()
        after = ended(server, 1)
        assert said(server).startswith(DRAFT), said(server)
        seconds = time.monotonic() - began
        return Outcome("cannot connect yet", seconds, after, remains.left())
    finally:
        server.stop()


def roles(server: Serving) -> dict[str, int]:
    return server.processes() if list(server.temporary.glob("judge-decoding-*")) else {}


def paused_at_the_start(bench: Bench) -> Outcome:
    """`ranks.startup_timeout_s` is 25 here."""
    document = bench.document()
    document["ranks"]["startup_timeout_s"] = 25
    server = bench.start(document)
    try:
        while TARGET not in roles(server):  # at once: the tiny model loads in some 20 ms
            assert server.process.poll() is None, server.output
        os.kill(server.processes()[TARGET], signal.SIGSTOP)
        began = time.monotonic()
        remains = Remains(server)
        after = ended(server, 1)
        assert re.search(rf"no answer within 25 s from .*{re.escape(TARGET)}", said(server)), (
            server.output
        )
        seconds = time.monotonic() - began
        return Outcome("cannot connect yet", seconds, after, remains.left())
    finally:
        server.stop()


def killed_while_draining(bench: Bench) -> Outcome:
    with bench.server() as server:
        remains, stream = Remains(server), Watched(server.url).running()
        pid = pid_of(server, TARGET)
        server.process.send_signal(signal.SIGTERM)
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        seen = stream.seen()
        assert stream.error is not None
        after = ended(server, 1)
        assert f"{TARGET} (pid {pid}) died" in said(server)
        return Outcome(seen, stream.ended - began, after, remains.left())


def restarted(bench: Bench) -> Outcome:
    """Started on the same ports right after a rank was killed, it serves the same text again."""
    with bench.server() as server:
        text = answer(server)
        os.kill(pid_of(server, TARGET), signal.SIGKILL)
        began = time.monotonic()
        assert server.wait() == 1
        with bench.start(bench.document(), ports=server.ports) as again:
            remains = Remains(again)
            assert answer(again) == text
            seconds = time.monotonic() - began
            assert again.stop() == 0, again.output
        return Outcome("the same answer again", seconds, "starts, exit 0 later", remains.left())


def told_to_stop(number: signal.Signals, bench: Bench, *, remove: bool = False) -> Outcome:
    """A signal to the launcher in the middle of a stream.

    remove  a cleaner of /tmp has removed the run folder, and does so again
    """
    document = bench.document(ranks=0)
    document["server"]["drain_s"] = 100
    with bench.start(document) as server:
        remains, stream = Remains(server), Watched(server.url).running()
        if remove:
            (folder,) = server.temporary.glob("judge-decoding-*")
            shutil.rmtree(folder)
            again = "the launcher to make the folder again"
            wait_for(lambda: folder.is_dir() or server.process.poll() is not None, again)
            assert folder.is_dir(), server.output
            shutil.rmtree(folder)
        server.process.send_signal(number)
        began = time.monotonic()
        seen = stream.seen()
        assert stream.answer.finish_reason == "length", seen
        assert server.wait() == 0, server.output
        return Outcome(seen, stream.ended - began, "stops after that, exit 0", remains.left())


def started_twice(bench: Bench) -> Outcome:
    """Two servers are started at once on the same ports, with the same ready file."""
    one = bench.start(bench.document(ranks=0))
    other = bench.start(bench.document(ranks=0), ports=one.ports, ready_file=one.ready_file)
    began = time.monotonic()
    try:
        wait_for(lambda: {one.process.poll(), other.process.poll()} != {None}, "one to end")
        seconds = time.monotonic() - began
        loser, winner = (one, other) if one.process.poll() is not None else (other, one)
        after = ended(loser, 2)
        pid = winner.process.pid
        assert (
            f"cannot listen on 127.0.0.1:{one.ports[0]} (the server of process {pid} has it)"
            in (said(loser))
        )
        with winner:
            assert answer(winner) == answer(bench.shared)
            remains = Remains(winner)
            assert winner.stop() == 0
        return Outcome("the first answers", seconds, f"the second {after}", remains.left())
    finally:
        one.stop()
        other.stop()


def openai_endpoint_killed(bench: Bench) -> Outcome:
    """It is started again, and what it was asked for runs to its end in the loop."""
    (port,) = free_ports(1)
    with bench.server(ranks=0, server={"openai_port": port}) as server:
        remains, expected = Remains(server), answer(server)
        body = json.dumps({"prompt": "a", "max_tokens": 900, "ignore_eos": True, "stream": True})
        connection = HTTPConnection("127.0.0.1", port, timeout=60)
        connection.request("POST", "/v1/completions", body)
        stream = connection.getresponse()
        assert stream.read1(6) == b"data: "
        found = descendants(server.process.pid)
        (pid,) = [p for p in found if "serving.openai.app" in command_line(p)]
        os.kill(pid, signal.SIGKILL)
        began = time.monotonic()
        with suppress(HTTPException, ConnectionError):
            assert b"[DONE]" not in stream.read()
        fresh = HTTPConnection("127.0.0.1", port, timeout=60)
        fresh.request("POST", "/v1/completions", json.dumps({"prompt": "a", "max_tokens": 1}))
        assert fresh.getresponse().status == 200
        seconds = time.monotonic() - began
        wait_for(lambda: server.metric("kv_slots_used") == 0, "the slots to be free")
        assert answer(server) == expected
        assert server.stop() == 0, server.output
        return Outcome(
            "the stream breaks off; the next request is answered",
            seconds,
            "goes on",
            remains.left(),
        )


def command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


KILL, STOP = signal.SIGKILL, "processes"
FAULTS = [
    Fault(STOP, "draft rank: kill -9", partial(killed, DRAFT, KILL)),
    Fault(
        STOP,
        "second of two target ranks: kill -9",
        partial(killed, "rank 3 (target 2 of 2)", KILL, ranks=2),
    ),
    Fault(STOP, "target rank: SIGTERM", partial(killed, TARGET, signal.SIGTERM)),
    Fault(STOP, "target rank: SIGSEGV", partial(killed, TARGET, signal.SIGSEGV)),
    Fault(STOP, "core stub (rank 0): kill -9", partial(killed, CORE, KILL)),
    Fault(STOP, "preprocessing stub: kill -9", partial(killed, "the preprocessing model", KILL)),
    Fault(STOP, "postprocessing stub: kill -9", partial(killed, "the postprocessing model", KILL)),
    Fault(STOP, "tritonserver: kill -9", partial(killed, "tritonserver", KILL)),
    Fault(STOP, "mpiexec: kill -9", partial(killed, MPIEXEC, KILL), quick=True),
    Fault(STOP, "launcher: kill -9", partial(killed, LAUNCHER, KILL), quick=True, leaves=True),
    Fault(STOP, "OpenAI endpoint: kill -9", openai_endpoint_killed),
    Fault(STOP, "rank killed while it loads", killed_at_the_start),
    Fault(STOP, "rank paused while it loads", paused_at_the_start),
    Fault(STOP, "rank killed while requests drain", killed_while_draining),
    Fault(STOP, "rank killed, server started again at once", restarted),
    Fault(STOP, "draft rank: paused for good", partial(paused_too_long, DRAFT)),
    Fault(
        STOP,
        "one of two target ranks: paused for good",
        partial(paused_too_long, "rank 2 (target 1 of 2)", ranks=2),
    ),
    Fault(STOP, "core stub: paused for good", partial(paused_for_ever, CORE), quick=True),
    Fault(STOP, "tritonserver: paused for good", partial(paused_for_ever, "tritonserver")),
    Fault(STOP, "target rank: paused for 2 s", partial(paused_a_while, [TARGET], 2)),
    Fault(STOP, "all stubs: paused for 2 s", partial(paused_a_while, STUBS, 2), quick=True),
    *(
        Fault(STOP, f"{short} stub: paused for 12 s", partial(paused_a_while, [name], 12))
        for short, name in zip(("core", "preprocessing", "postprocessing"), STUBS, strict=True)
    ),
    Fault(STOP, "target rank: ten times slower", partial(slowed, TARGET)),
    Fault(STOP, "launcher: SIGHUP", partial(told_to_stop, signal.SIGHUP)),
    Fault(STOP, "launcher: SIGQUIT", partial(told_to_stop, signal.SIGQUIT)),
    Fault(
        STOP,
        "run folder removed twice, then SIGHUP",
        partial(told_to_stop, signal.SIGHUP, remove=True),
        quick=True,
    ),
    Fault(STOP, "two servers started at once on the same ports", started_twice),
]
