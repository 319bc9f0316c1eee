"""The claims of docs/operations/security.md on who may reach the server and what it reads."""

from __future__ import annotations

import ast
import json
import re
import socket
import ssl
import stat
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path

import grpc
import pytest
import trustme
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tritonclient.grpc import service_pb2, service_pb2_grpc

from judge_client.client import JudgeClient
from judge_client.connection import TOKEN, Access
from judge_client.errors import JudgeClientError
from judge_client.wire import GenerateRequest
from judge_decoding.checkpoint.tensors import SafeTensors
from judge_decoding.config import ServerConfig, load_deployment
from judge_decoding.decoding.sequence import Request as LoopRequest
from judge_decoding.errors import UserError
from judge_decoding.pipeline import load_pipeline
from judge_decoding.serving import access
from judge_decoding.text import Tokenizer
from tests.triton_world import Serving, Trap, free_ports

pytestmark = pytest.mark.servers

ROOT = Path(__file__).parents[2]
SECRET = "0123456789abcdef0123456789abcdef"
PROMPT = "Who may ask?"
SOURCES = sorted(
    path
    for folder in ("judge_decoding", "triton_repo", "clients", "build", "plugins")
    for path in (ROOT / folder).rglob("*.py")
)


def document(target: Path, draft: Path, **server: object) -> dict[str, object]:
    return {
        "name": "tiny",
        "dtype": "float32",
        "target": {"model": str(target)},
        "draft": {"model": str(draft)},
        "max_draft_len": 4,
        "limits": {"max_sequences": 2, "max_context": 256, "max_tokens": 100},
        "server": server,
    }


class Guarded:
    """A server with TLS and a token, its root certificate, and another root certificate."""

    def __init__(self, serving: Serving, config: Path, ca: Path, other_ca: Path) -> None:
        self.serving, self.config, self.ca, self.other_ca = serving, config, ca, other_ca
        # The certificate is for a name, as real ones are.
        self.url = f"localhost:{serving.ports[1]}"

    def stub(self, ca: Path) -> service_pb2_grpc.GRPCInferenceServiceStub:
        credentials = grpc.ssl_channel_credentials(ca.read_bytes())
        return service_pb2_grpc.GRPCInferenceServiceStub(grpc.secure_channel(self.url, credentials))


@pytest.fixture(scope="module")
def guarded(
    tiny_target: Path, tiny_draft: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Guarded]:
    folder = tmp_path_factory.mktemp("guarded")
    authority, other = trustme.CA(), trustme.CA()
    issued = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    other.cert_pem.write_to_path(folder / "other.pem")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    (folder / "cert.pem").write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
    (folder / "token").write_text(f"{SECRET}\n")
    tls = {"certificate": "cert.pem", "key": "key.pem", "ca": "ca.pem"}
    (openai_port,) = free_ports(1)
    config = folder / "deployment.yaml"
    config.write_text(
        yaml.safe_dump(
            document(tiny_target, tiny_draft, tls=tls, token_file="token", openai_port=openai_port)
        )
    )
    trap = Trap()  # regression: the proxy of the environment was used
    with Serving(config, folder, variables=trap.variables) as serving:
        yield Guarded(serving, config, folder / "ca.pem", folder / "other.pem")
        assert serving.stop() == 0, serving.output
    assert SECRET not in serving.output
    assert trap.heard == []


def test_tls_and_token_let_in_who_has_both(guarded: Guarded) -> None:
    loop = load_pipeline(load_deployment(guarded.config))
    expected = loop.decoder.generate([LoopRequest(loop.tokenizer.encode(PROMPT), 20)])[0]
    with JudgeClient(guarded.url, timeout=120, access=Access(guarded.ca, SECRET)) as client:
        client.check()
        assert client.generate(GenerateRequest(PROMPT, max_tokens=20)).text == expected.text
        chunks = client.stream(
            GenerateRequest(PROMPT, max_tokens=100, ignore_eos=True, rule="none")
        )
        next(chunks)
        chunks.close()  # the cancellation is let in too


@pytest.mark.parametrize(
    ("value", "status"),
    [
        (None, 401),
        (f"Bearer {SECRET[::-1]}", 401),
        (f"Basic {SECRET}", 401),
        ("Bearer \xff", 401),
        (f"Bearer {SECRET}", 200),
    ],
)
def test_the_openai_endpoint_has_tls_and_the_token(
    guarded: Guarded, value: str | None, status: int
) -> None:
    port = load_deployment(guarded.config).server.openai_port
    assert port is not None
    context = ssl.create_default_context(cafile=str(guarded.ca))
    connection = HTTPSConnection("localhost", port, timeout=60, context=context)
    headers = {} if value is None else {"Authorization": value}
    connection.request("GET", "/health")  # open to probes
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b'{"status":"ok"}')
    body = json.dumps({"prompt": PROMPT, "max_tokens": 2})
    connection.request("POST", "/v1/completions", body, headers)
    answer = connection.getresponse()
    text = answer.read().decode()
    assert answer.status == status, text
    assert SECRET not in text
    connection.close()
    with pytest.raises(OSError, match=r"reset|closed"):  # no HTTP without TLS
        urllib.request.urlopen(f"http://localhost:{port}/health", timeout=30)


@pytest.mark.parametrize("token", [None, SECRET[::-1]])
def test_without_the_token_nothing_but_health_answers(guarded: Guarded, token: str | None) -> None:
    with JudgeClient(guarded.url, timeout=120, access=Access(guarded.ca, token)) as client:
        client.check()
        with pytest.raises(JudgeClientError, match="expecting") as refused:
            client.generate(GenerateRequest(PROMPT, max_tokens=4))
    assert SECRET not in str(refused.value)
    calls = guarded.stub(guarded.ca)
    for ask in (
        lambda **how: calls.ModelConfig(service_pb2.ModelConfigRequest(name="ensemble"), **how),
        lambda **how: calls.ServerMetadata(service_pb2.ServerMetadataRequest(), **how),
        lambda **how: calls.ModelStatistics(service_pb2.ModelStatisticsRequest(), **how),
    ):
        with pytest.raises(grpc.RpcError, match="expecting"):
            ask(timeout=60, metadata=[(TOKEN, token)] if token else [])
        ask(timeout=60, metadata=[(TOKEN, SECRET)])


def test_another_root_or_no_tls_does_not_connect(guarded: Guarded) -> None:
    for given in (Access(guarded.other_ca, SECRET), Access(None, SECRET)):
        with (
            JudgeClient(guarded.url, timeout=5, access=given) as client,
            pytest.raises(JudgeClientError) as failed,
        ):
            client.generate(GenerateRequest(PROMPT, max_tokens=4))
        assert failed.value.status == "UNAVAILABLE"


def test_http_has_no_tls_so_it_stays_on_loopback_and_wants_the_token(guarded: Guarded) -> None:
    port = guarded.serving.ports[0]
    url = f"http://127.0.0.1:{port}/v2/models/ensemble/generate"
    body = json.dumps({"text_input": PROMPT, "max_tokens": 4}).encode()
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(url, body, timeout=60)
    assert refused.value.code == 403
    request = urllib.request.Request(url, body, {access.TOKEN: SECRET})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.load(answer)["finish_reason"]


ADMINISTRATION = [
    (
        "POST",
        "/v2/systemsharedmemory/region/a/register",
        {"key": "/a", "offset": 0, "byte_size": 8},
    ),
    ("GET", "/v2/systemsharedmemory/status", None),
    ("POST", "/v2/repository/models/ensemble/unload", {}),
    ("POST", "/v2/repository/index", {}),
    ("GET", "/v2/trace/setting", None),
    ("GET", "/v2/logging", None),
]


@pytest.mark.parametrize(("method", "path", "body"), ADMINISTRATION, ids=lambda v: str(v)[:40])
def test_administration_is_shut_for_everybody(
    guarded: Guarded, method: str, path: str, body: dict[str, object] | None
) -> None:
    """Mapping host memory, unloading models and changing logs are not possible: the HTTP front does
    not pass them on, and Triton wants a key that nobody has."""
    data = None if body is None else json.dumps(body).encode()
    url = f"http://127.0.0.1:{guarded.serving.ports[0]}{path}"
    request = urllib.request.Request(url, data, {access.TOKEN: SECRET}, method=method)
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, timeout=60)
    assert refused.value.code == 404
    (sock,) = Path("/dev/shm").glob(f"{guarded.serving.run_folder.name}-http.sock")
    direct = HTTPConnection("triton")
    direct.sock = socket.socket(socket.AF_UNIX)
    direct.sock.connect(str(sock))
    direct.request(method, path, data, {access.TOKEN: SECRET})
    assert direct.getresponse().status == 403
    direct.close()
    assert sock.stat().st_mode & 0o777 == 0o600


def test_administration_over_grpc_is_shut_too(guarded: Guarded) -> None:
    calls, how = guarded.stub(guarded.ca), {"timeout": 60, "metadata": [(TOKEN, SECRET)]}
    region = service_pb2.SystemSharedMemoryRegisterRequest(name="a", key="/a", byte_size=8)
    for ask in (
        lambda: calls.SystemSharedMemoryRegister(region, **how),
        lambda: calls.RepositoryModelUnload(
            service_pb2.RepositoryModelUnloadRequest(model_name="ensemble"), **how
        ),
        lambda: calls.LogSettings(service_pb2.LogSettingsRequest(), **how),
        lambda: calls.TraceSetting(service_pb2.TraceSettingRequest(), **how),
    ):
        with pytest.raises(grpc.RpcError, match="expecting"):
            ask()


def listening(port: int) -> set[str]:
    """Addresses on which this host listens on `port`, from /proc/net/tcp and tcp6."""
    found = set()
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]:
            address, number = line.split()[1].split(":")
            if line.split()[3] == "0A" and int(number, 16) == port:
                raw = bytes.fromhex(address)
                words = [raw[i : i + 4][::-1] for i in range(0, len(raw), 4)]
                family = socket.AF_INET if name == "tcp" else socket.AF_INET6
                # gRPC binds IPv4 addresses as IPv6 sockets hold them.
                found.add(socket.inet_ntop(family, b"".join(words)).removeprefix("::ffff:"))
    return found


def test_everything_listens_on_loopback_alone(guarded: Guarded) -> None:
    assert ServerConfig().host == "127.0.0.1"
    assert [listening(port) for port in guarded.serving.ports] == [{"127.0.0.1"}] * 3


def test_prompts_in_shared_memory_are_no_other_users_business(guarded: Guarded) -> None:
    (folder,) = guarded.serving.temporary.glob("judge-decoding-*")
    regions = list(Path("/dev/shm").glob(f"{folder.name}*"))
    assert len(regions) >= 3  # one per Python model
    assert {stat.S_IMODE(one.stat().st_mode) & 0o077 for one in [folder, *regions]} == {0}


def test_http_stays_on_loopback_where_grpc_has_tls(tmp_path: Path) -> None:
    for name in ("c", "k", "a"):
        (tmp_path / name).touch()
    tls = {"certificate": tmp_path / "c", "key": tmp_path / "k", "ca": tmp_path / "a"}
    assert access.http_host(ServerConfig(host="0.0.0.0")) == "0.0.0.0"
    assert access.http_host(ServerConfig(host="0.0.0.0", tls=tls)) == "127.0.0.1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read"),
        ("", "at least 16 letters and digits"),
        ("short\n", "at least 16 letters and digits"),
        ("with spaces and more of them\n", "at least 16 letters and digits"),
        ("0123456789abcdef,inference:a=b\n", "at least 16 letters and digits"),
    ],
)
def test_a_useless_token_is_refused(tmp_path: Path, text: str | None, message: str) -> None:
    path = tmp_path / "token"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UserError, match=f"server.token_file: .*{message}"):
        access.arguments(ServerConfig(token_file=path))


def test_a_missing_certificate_is_refused(tmp_path: Path) -> None:
    tls = dict.fromkeys(("certificate", "key", "ca"), tmp_path / "nothing.pem")
    with pytest.raises(UserError, match=r"server\.tls\.certificate: no file .*nothing\.pem"):
        access.arguments(ServerConfig(tls=tls))


# What the sources must not do ------------------------------------------------------------------

UNPICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib", "_pickle"}
CALLS = {"eval", "exec", "compile"}
ATTRIBUTES = {"torch.load", "torch.save", "os.system", "yaml.load", "yaml.unsafe_load"}
MPI_PICKLING = {
    *("send", "recv", "isend", "irecv", "ssend", "bsend", "sendrecv"),
    *("bcast", "gather", "scatter", "allgather", "alltoall", "reduce", "allreduce"),
}
"""The lower-case methods of mpi4py, which pickle."""


def findings(path: Path) -> list[str]:
    """One line for each place in this file that could run what it reads."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = []
    for node in ast.walk(tree):
        said = ""
        match node:
            case ast.Import(names):
                bad = {name.name.split(".")[0] for name in names} & UNPICKLING
                said = f"imports {', '.join(sorted(bad))}" if bad else ""
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in UNPICKLING:
                said = f"imports {module}"
            case ast.Call(func=ast.Name(id=name)) if name in CALLS:
                said = f"{name}()"
            case ast.Call(func=ast.Name(id="__import__")):
                said = "__import__()"
            case ast.Call(func=ast.Attribute() as function, keywords=keywords):
                called = ast.unparse(function)
                given = {k.arg: ast.unparse(k.value) for k in keywords}
                if called in ATTRIBUTES:
                    said = f"{called}()"
                elif given.get("allow_pickle") == "True" or given.get("shell") == "True":
                    said = f"{called}({', '.join(f'{k}={v}' for k, v in given.items())})"
                elif given.get("trust_remote_code") == "True":
                    said = f"{called}(trust_remote_code=True)"
                elif function.attr in MPI_PICKLING and "world" in ast.unparse(function.value):
                    said = f"{called}() pickles"
        if said:
            found.append(f"{path.relative_to(path.parents[1])}:{node.lineno}: {said}")
    return found


def test_nothing_unpickles_or_runs_what_it_reads() -> None:
    assert len(SOURCES) > 80
    found = [line for path in SOURCES for line in findings(path)]
    # The task `code` runs the solutions that this package brings itself, for its tests' answers.
    own = [line for line in found if line.startswith("tasks/functions.py:")]
    assert [line.split(": ")[1] for line in own] == ["exec()"] and found == own


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "torch.load('x')",
        "np.load('x', allow_pickle=True)",
        "yaml.load(text)",
        "eval('1')",
        "subprocess.run('x', shell=True)",
        "self._world.bcast(1)",
        "AutoModel.from_pretrained(x, trust_remote_code=True)",
    ],
)
def test_the_check_would_find_it(source: str, tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(f"def f():\n    {source}\n")
    assert len(findings(path)) == 1


def test_weights_are_safetensors_and_nothing_else(tiny_target: Path, tmp_path: Path) -> None:
    """A folder with a pickled checkpoint is a folder without weights."""
    folder = tmp_path / "pickled"
    folder.mkdir()
    (folder / "config.json").write_text((tiny_target / "config.json").read_text())
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    with pytest.raises(UserError, match=r"no \.safetensors file in .*pickled"):
        SafeTensors(folder)


def test_a_weight_index_cannot_lead_out_of_its_folder(tiny_target: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes((tiny_target / "model.safetensors").read_bytes())
    (tmp_path / "b.safetensors").write_bytes((tiny_target / "model.safetensors").read_bytes())
    index = {"weight_map": {"lm_head.weight": "../b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"lacks the shard '\.\./b\.safetensors'"):
        SafeTensors(folder)


def test_a_chat_template_runs_in_a_sandbox(tiny_target: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text((tiny_target / "tokenizer.json").read_text())
    (tmp_path / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(UserError, match=r"the chat template refused the messages: .*unsafe"):
        Tokenizer(tmp_path).chat([{"role": "user", "content": "Hi"}])


def test_no_input_names_a_file() -> None:
    """Model paths come only from the deployment file: no input tensor is a path."""
    text = (ROOT / "triton_repo" / "ensemble" / "config.pbtxt").read_text()
    inputs = re.findall(r'name: "(\w+)"', text.split("output [")[0])
    assert len(inputs) > 20
    assert not [n for n in inputs if re.search(r"path|file|folder|model|url|adapter|lora", n)]


# What is installed ----------------------------------------------------------------------------

PINS = ROOT / "deploy" / "constraints.txt"
ELSEWHERE = re.compile(r"torch|triton|cuda-.*|nvidia-(?!pytriton).*")
"""PyTorch and its dependencies: one build per platform, so they are not in the file."""


def pins() -> dict[str, tuple[str, int]]:
    """Package -> (version, number of hashes)."""
    found = {}
    for block in re.split(r"\n(?=\S)", PINS.read_text()):
        if match := re.match(r"([A-Za-z0-9._-]+)==(\S+)", block):
            found[canonicalize_name(match[1])] = (match[2], block.count("--hash=sha256:"))
    return found


def test_what_the_project_asks_for_is_pinned_with_hashes() -> None:
    """The project's requirements and those of the extra `serve`; pip itself checks completeness."""
    pinned = pins()
    text = (ROOT / "pyproject.toml").read_text()
    served = [
        Requirement(line)
        for name in ("dependencies", "serve")
        for line in re.findall(
            r'"(.+?)"', re.search(rf"^{name} = \[$(.*?)^\]$", text, re.M | re.S)[1]
        )
    ]
    assert {"pydantic", "nvidia-pytriton"} <= {one.name for one in served}
    for wanted in served:
        name = canonicalize_name(wanted.name)
        if not ELSEWHERE.fullmatch(name):
            assert wanted.specifier.contains(pinned[name][0]), f"{wanted}: {pinned[name][0]}"
    assert len(pinned) > 50 and all(hashes for _, hashes in pinned.values())
    assert not [name for name in pinned if ELSEWHERE.fullmatch(name)]


def test_the_pins_name_no_place() -> None:
    lines = PINS.read_text().splitlines()
    code = [line for line in lines if not line.startswith("#")]
    assert all(
        re.fullmatch(r"[a-z0-9-]+==\S+ \\|    --hash=sha256:[0-9a-f]{64}( \\)?", x) for x in code
    )
    assert "://" not in PINS.read_text()
