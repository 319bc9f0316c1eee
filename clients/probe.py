"""A health probe that runs a round: a request of two tokens through every part of the server.

    python -m clients.probe -u 127.0.0.1:8001 -m 127.0.0.1:8002          ready: it was answered
    python -m clients.probe -u 127.0.0.1:8001 -m 127.0.0.1:8002 --live   alive: or others are

Exit 0 or 1, with one line. Triton's own readiness says that models are loaded; it goes on saying so
when one of their processes hangs. A full queue makes a server not ready, but it is alive: `--live`
then takes the loop's own time stamp (it is renewed while rounds run), so that a busy server is not
restarted for being busy.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Annotated, Any

import typer

from clients import terminal
from clients.access import DIRECT, Access
from clients.client import CHANNEL, call_error, check_url, new_request_id
from clients.server import parse_metrics
from clients.wire import (
    MODEL,
    JudgeClientError,
    Request,
    infer_request,
    read_response,
    stop_request,
)

ROUND = Request("Hi", max_tokens=2, ignore_eos=True)
STALE_S = 60.0
"""A loop that said nothing for so long is dead; longer than any round."""
ALIVE = "judge_decoding_loop_alive_timestamp_seconds"
RUNNING = "judge_decoding_num_requests_running"
WAITING = "judge_decoding_num_requests_waiting"


def probe(
    url: terminal.Url = terminal.DEFAULT_URL,
    metrics: Annotated[
        str, typer.Option("-m", "--metrics", help="HOST:PORT of the server's metrics.")
    ] = "127.0.0.1:8002",
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds for the answer.")] = 5.0,
    live: Annotated[bool, typer.Option("--live", help="Busy counts as well.")] = False,
) -> int:
    """Exit 0 where the server answers a request; with --live also where it is busy with others."""
    began = time.monotonic()
    try:
        run_round(url, timeout)
        said, well = f"a round in {1e3 * (time.monotonic() - began):.0f} ms", True
    except JudgeClientError as error:
        said, well = str(error), False
        if live and is_busy(metrics):
            said, well = f"busy with others ({error})", True
    print(("alive: " if live else "ready: ") + said if well else f"not well: {said}")
    return 0 if well else 1


def run_round(url: str, timeout: float) -> None:
    """JudgeClientError unless it answers within `timeout` seconds. Leaves nothing behind."""
    import grpc
    from tritonclient.grpc import service_pb2_grpc

    access, number = Access(), new_request_id()
    with access.channel(grpc, check_url(url), CHANNEL) as channel:
        stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        how = {"timeout": timeout, "metadata": access.metadata(number)}
        final = False
        try:
            for response in stub.ModelStreamInfer(
                iter([infer_request(ROUND, number, stream=False, model=MODEL)]), **how
            ):
                final = read_response(response)[1]
        except grpc.RpcError as error:
            with suppress(grpc.RpcError):  # it may wait in the queue still
                stop = iter([stop_request(number, model=MODEL)])
                list(stub.ModelStreamInfer(stop, timeout=0.5, metadata=how["metadata"]))
            raise call_error(error, url, timeout) from None
        if not final:
            raise JudgeClientError(f"{url}: the answer has no end")


def is_busy(metrics: str) -> bool:
    """Whether requests are there and the loop has said lately that it works on them."""
    try:
        with DIRECT.open(f"http://{metrics}/metrics", timeout=5) as page:
            values = parse_metrics(page.read().decode("utf-8"))
    except OSError:
        return False
    fresh = time.time() - values.get(ALIVE, 0.0) < STALE_S
    return fresh and values.get(RUNNING, 0.0) + values.get(WAITING, 0.0) > 0


if __name__ == "__main__":
    terminal.run(probe, "probe")
