"""A real server with real MPI ranks: the same answers, a clean stop, and every way to fail."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
import yaml
from tritonclient.utils import InferenceServerException

from judge_decoding.config import load_deployment
from judge_decoding.decoding.sequence import Request
from judge_decoding.pipeline import load_pipeline
from judge_decoding.ranks.shared_memory import mapped
from tests.triton_world import Serving, Stream, ask, free_ports, ids, text, wait_for

pytestmark = pytest.mark.servers

PROMPTS = ["The first prompt", "Another one, a little longer than the first", "3"]
LONG = {"max_tokens": 900, "stream": True, "ignore_eos": True, "acceptance_rule": "none"}


@pytest.fixture(scope="module")
def document(tiny_target: Path, tiny_draft: Path) -> dict[str, object]:
    return {
        "name": "tiny",
        "dtype": "float32",
        "target": {"model": str(tiny_target)},
        "draft": {"model": str(tiny_draft)},
        "max_draft_len": 4,
        "limits": {"max_sequences": 2, "max_context": 1024, "max_tokens": 1000},
        "ranks": {
            "draft": {"tp": 1, "threads": 1},
            "target": {"tp": 2, "threads": 1},
            "timeout_s": 60,
        },
        "server": {"drain_s": 170},
    }


def write(folder: Path, document: dict[str, object]) -> Path:
    path = folder / "deployment.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def test_two_target_ranks_answer_as_one_process_and_sigterm_lets_a_stream_finish(
    document: dict[str, object], tmp_path: Path
) -> None:
    config = write(tmp_path, document)
    single = load_pipeline(load_deployment(config))  # not under mpiexec, so one process
    with Serving(config, tmp_path) as server:
        for prompt in PROMPTS:
            request = Request(single.tokenizer.encode(prompt), 48, ignore_end=True)
            expected = single.decoder.generate([request])[0]
            responses = ask(server, text_input=prompt, max_tokens=48, stream=True, ignore_eos=True)
            assert ids(responses) == expected.token_ids
            assert text(responses) == expected.text
            assert responses[-1]["total_draft_tokens"][0] == expected.record.num_draft_tokens
        processes = server.processes()
        assert set(processes) == {
            "tritonserver",
            "the preprocessing model",
            "the judge_decoding model",
            "the postprocessing model",
            "rank 1 (draft)",
            "rank 2 (target 1 of 2)",
            "rank 3 (target 2 of 2)",
        }
        for rank, role in (("1", "draft"), ("2", "target"), ("3", "target")):
            asked = time.time()
            wait_for(
                lambda r=rank, o=role, since=asked: (
                    since < server.metric("rank_heard_timestamp_seconds", rank=r, role=o)
                ),
                "a rank to be asked, in an idle server",
            )
        with Stream(server) as stream:
            stream.send(text_input=PROMPTS[0], **LONG)
            stream.next()
            server.process.send_signal(signal.SIGTERM)
            *_, last = stream.responses()
        assert last["finish_reason"][0] == b"length"
        assert last["num_output_tokens"][0] == 900
        assert server.wait() == 0, server.output
    assert not any(map(is_alive, processes.values()))
    assert not server.ready_file.exists()
    assert not list(server.temporary.iterdir())


RANKS = {"draft": {"tp": 1, "threads": 1}, "target": {"tp": 1, "threads": 1}}
COLOCATED = {"colocate_draft": True, "target": {"tp": 1, "threads": 1}}
VICTIMS = [
    ("rank 1 (draft)", RANKS),
    ("rank 2 (target)", RANKS),
    ("rank 1 (draft and target)", COLOCATED),
    ("the judge_decoding model", COLOCATED),
    ("tritonserver", COLOCATED),
]


@pytest.fixture(scope="module")
def ports() -> list[int]:
    """The same ports for every run, so that each start is a restart after a death."""
    return free_ports(3)


@pytest.mark.parametrize(("victim", "ranks"), VICTIMS)
def test_a_killed_process_ends_everything_and_is_named(
    document: dict[str, object],
    tmp_path: Path,
    ports: list[int],
    victim: str,
    ranks: dict[str, object],
) -> None:
    config = write(tmp_path, document | {"ranks": ranks})
    with Serving(config, tmp_path, ports) as server, Stream(server) as stream:
        processes = server.processes()
        stream.send(text_input=PROMPTS[0], **LONG)
        stream.next()
        (segment,) = mapped(processes["the judge_decoding model"])
        assert segment.exists()
        (folder,) = server.temporary.glob("judge-decoding-*")
        assert list(Path("/dev/shm").glob(f"{folder.name}*"))
        os.kill(processes[victim], signal.SIGKILL)
        killed = time.monotonic()
        with pytest.raises(InferenceServerException):
            list(stream.responses())
        assert time.monotonic() - killed < 10
        assert server.wait() == 1
        said = [line for line in server.output.splitlines() if line.startswith("judge-decoding:")]
        expected = f"judge-decoding: {re.escape(victim)} \\(pid {processes[victim]}\\) died"
        assert re.match(expected, said[-1]), server.output
        assert not any(map(is_alive, processes.values()))
        assert not list(Path("/dev/shm").glob(f"{folder.name}*"))
        assert not segment.exists()


def test_a_rank_that_hangs_ends_everything_and_is_named(
    document: dict[str, object], tmp_path: Path, ports: list[int]
) -> None:
    config = write(tmp_path, document | {"ranks": RANKS | {"timeout_s": 5}})
    with Serving(config, tmp_path, ports) as server, Stream(server) as stream:
        processes = server.processes()
        stream.send(text_input=PROMPTS[0], **LONG)
        stream.next()
        os.kill(processes["rank 2 (target)"], signal.SIGSTOP)
        with pytest.raises(InferenceServerException):
            list(stream.responses())
        assert server.wait() == 1
        last = server.output.strip().splitlines()[-1]
        assert "no answer within 5 s from rank 2 (target) on host" in last, server.output
        assert not any(map(is_alive, processes.values()))


@pytest.mark.parametrize("ranks", [True, False])
def test_a_deployment_that_cannot_load_is_one_line_and_no_server(
    document: dict[str, object], tmp_path: Path, ranks: bool
) -> None:
    """The message comes from the process that refused, not from Triton's log."""
    changes = {"draft": {"model": str(tmp_path / "nowhere")}}
    kept = {name: value for name, value in document.items() if ranks or name != "ranks"}
    server = Serving(write(tmp_path, kept | changes), tmp_path)
    assert server.wait() == 1
    assert "nowhere" in server.output.strip().splitlines()[-1]
    wait_for(lambda: not list(server.temporary.iterdir()), "the private folder to go")
