"""What a launcher keeps for its server: ports, ready file, run folder, bounds; and stopped
processes. The same on real servers: test_triton_server, tests/faults."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from judge_decoding.config import Deployment, ServerConfig
from judge_decoding.errors import UserError
from judge_decoding.ranks import run_folder
from judge_decoding.serving import regions
from judge_decoding.serving.kept_folder import KeptFolder
from judge_decoding.serving.ports import Ports, owner
from judge_decoding.serving.processes import become_child
from judge_decoding.serving.ready_file import ReadyFile
from judge_decoding.serving.stalls import Stalls
from tests.triton_world import free_ports, wait_for

MIB = 2**20


def server(host: str = "127.0.0.1") -> ServerConfig:
    http, grpc, metrics = free_ports(3)
    return ServerConfig(host=host, http_port=http, grpc_port=grpc, metrics_port=metrics)


def deployment(**changes: object) -> Deployment:
    models = {"name": "x", "target": {"model": "t"}, "draft": {"model": "d"}}
    return Deployment.model_validate(models | changes)


@contextmanager
def sleeper(**options: object) -> Iterator[int]:
    process = subprocess.Popen(["sleep", "60"], **options)  # type: ignore[call-overload]
    try:
        yield process.pid
    finally:
        process.kill()
        process.wait()


def test_ports_are_held_from_their_check_to_the_end() -> None:
    """Regression (issue 16): a port was found free and let go again."""
    ours = server()
    with Ports(ours):
        assert owner(ours.host, ours.grpc_port) == os.getpid()
        with pytest.raises(UserError, match=f":{ours.http_port} .*process {os.getpid()} has it"):
            Ports(ours)
        mixed = ServerConfig(**server().model_dump() | {"metrics_port": ours.metrics_port})
        with pytest.raises(UserError, match="choose another --metrics-port"):
            Ports(mixed)
        assert owner(mixed.host, mixed.http_port) is None  # what it had is given back
        with Ports(ServerConfig(**ours.model_dump() | {"host": "127.0.0.2"})):
            pass  # the same numbers at another address are other ports
    assert owner(ours.host, ours.grpc_port) is None
    with socket.create_server((ours.host, ours.grpc_port)):
        with pytest.raises(UserError, match=r"\(Address already in use\); choose another --grpc-"):
            Ports(ours)
        assert owner(ours.host, ours.http_port) is None


def test_a_port_that_was_asked_for_very_often_is_still_held() -> None:
    """A launcher accepts no connections, so that its socket's backlog fills up."""
    ours = server()
    with Ports(ours), ExitStack() as stack:
        for _ in range(1000):
            asking = stack.enter_context(socket.socket(socket.AF_UNIX))
            asking.setblocking(False)
            try:
                asking.connect(f"\0judge-decoding-{ours.host}:{ours.http_port}")
            except BlockingIOError:
                break
        assert owner(ours.host, ours.http_port) == 0
        with pytest.raises(UserError, match=r"\(another server has it\); choose another --http"):
            Ports(ours)


def test_only_ones_own_ready_file_is_removed(tmp_path: Path) -> None:
    """Regression (issue 16): the loser of two servers removed the winner's."""
    ours, path = server(), tmp_path / "ready.json"
    addresses = {"grpc": f"127.0.0.1:{ours.grpc_port}"}
    path.write_text("half a docu")  # of a run that was killed
    ready = ReadyFile(path)
    assert not path.exists()
    ready.remove()
    ready.write(addresses)
    assert json.loads(path.read_text()) == addresses | {"pid": os.getpid()}
    with Ports(ours), pytest.raises(UserError, match=f"process {os.getpid()}, which runs"):
        ReadyFile(path)
    assert path.exists()
    everywhere = ServerConfig(**ours.model_dump() | {"host": "0.0.0.0"})  # reached at 127.0.0.1
    with Ports(everywhere), pytest.raises(UserError, match="choose another --ready-file"):
        ReadyFile(path)
    later = ReadyFile(path)  # nobody holds that port any more
    assert not path.exists()
    later.write(addresses | {"http": "127.0.0.1:1"})
    ready.remove()
    assert path.exists()
    later.remove()
    assert not list(tmp_path.iterdir())
    nothing = ReadyFile(None)
    nothing.write(addresses)
    nothing.remove()


def test_a_run_folder_outlives_a_cleaner_of_tmp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Regression (issue 16): without its notes the launcher took the server for one that had not
    started, and cut every stream at SIGTERM."""
    path = tmp_path / "tmp" / "run"
    path.mkdir(0o700, parents=True)
    monkeypatch.setenv(run_folder.FOLDER_VARIABLE, str(path))
    kept = KeptFolder(path)
    run_folder.announce("one")
    (one,) = kept.processes()
    for gone in (path, path.parent):
        with _open(path) as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # systemd's cleaner asks for it
        shutil.rmtree(gone)
        kept.keep()
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert kept.processes() == [one]
    shutil.rmtree(tmp_path / "tmp")
    (tmp_path / "tmp").touch()  # now the folder cannot be made
    assert not kept.drain()
    (tmp_path / "tmp").unlink()
    assert not kept.drain()
    shutil.rmtree(path)
    assert not kept.drain()  # asks again
    run_folder.drain_when_asked(lambda: None)
    assert kept.drain()
    kept.close()
    with _open(path) as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def _open(folder: Path) -> Iterator[int]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def test_a_stopped_process_is_noticed_after_its_time_and_not_before() -> None:
    clock = [0.0]
    stalls = Stalls(10.0, now=lambda: clock[0])

    def look(seconds: float) -> int | None:
        clock[0] += seconds
        return stalls.look([well, pid])

    with sleeper() as well, sleeper() as pid:
        os.kill(pid, signal.SIGSTOP)
        state = Path(f"/proc/{pid}/stat")
        wait_for(lambda: ") T " in state.read_text(), "the process to stop")
        assert look(0.5) is None
        assert [look(1.0) for _ in range(8)] == [None] * 8
        assert look(500.0) is None  # the launcher paused too: this counts as one second
        os.kill(pid, signal.SIGCONT)
        wait_for(lambda: ") T " not in state.read_text(), "the process to go on")
        assert look(1.0) is None
        os.kill(pid, signal.SIGSTOP)
        wait_for(lambda: ") T " in state.read_text(), "the process to stop")
        assert [look(1.0) for _ in range(10)] == [None] * 10
        assert look(1.0) == pid
    assert stalls.look([pid]) is None  # it has gone


def test_a_regions_bound_follows_the_limits() -> None:
    """docs/operations/security.md has the formula and the default."""
    assert regions.region_bytes(deployment()) == 15 * MIB
    one = {
        "limits": {"max_sequences": 1, "max_context": 1024},
        "server": {"max_queue": 0, "max_prompt_bytes": 2 * MIB},
    }
    assert regions.region_bytes(deployment(**one)) == (2 + 16 + 1) * MIB  # 72 KiB count as 1 MiB


def test_a_dev_shm_that_is_too_small_is_one_line(tmp_path: Path) -> None:
    """A real one of 2 MB and of 64 MB: tests/faults/disks.py."""
    regions.check_room(deployment(), tmp_path)
    ranks = {"draft": {"tp": 1}, "target": {"tp": 2}}
    huge = deployment(server={"max_prompt_bytes": 10**15}, ranks=ranks)
    with pytest.raises(UserError) as caught:
        regions.check_room(huge, tmp_path)
    size = regions.region_bytes(huge) // MIB
    assert f"may need {3 * size + 5} MB (3 x {size} MB for Triton's models, 5 MB for 4 ranks);" in (
        str(caught.value)
    )
    assert "docker run --shm-size=1g" in str(caught.value)
    with pytest.raises(UserError, match=r"there is no .*nowhere \(No such file or directory\)"):
        regions.check_room(deployment(), tmp_path / "nowhere")


def test_a_process_that_the_limit_would_kill_gets_none() -> None:
    unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    with sleeper() as pid:
        assert not regions.bound(pid, MIB)
        assert resource.prlimit(pid, resource.RLIMIT_FSIZE) == unlimited
    with sleeper(preexec_fn=lambda: become_child(signal.SIGKILL)) as pid:
        assert regions.bound(pid, MIB)
        assert resource.prlimit(pid, resource.RLIMIT_FSIZE) == (MIB, resource.RLIM_INFINITY)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (2 * MIB, 2 * MIB))
        assert regions.bound(pid, 4 * MIB)  # it may not have more
        assert resource.prlimit(pid, resource.RLIMIT_FSIZE) == (2 * MIB, 2 * MIB)
    assert not regions.bound(pid, MIB)  # it has gone
