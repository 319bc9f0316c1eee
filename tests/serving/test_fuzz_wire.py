"""Five thousand bad and odd requests to a real server: none ends it, and none keeps a slot.

A grammar makes requests that are almost right: known and unknown tensors, each sometimes with a
wrong type, shape, length or value, to all four models, over gRPC and HTTP. The seed is fixed, so a
failure can be reproduced.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import struct
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import pytest
import yaml
from tritonclient.grpc import service_pb2, service_pb2_grpc

from judge_client.connection import CHANNEL
from tests.conftest import write_judge
from tests.triton_world import Serving, ask, text, wait_for

pytestmark = pytest.mark.servers

GRPC_CASES, HTTP_CASES = 4300, 900
AT_ONCE = 24
ANSWER_S = 120.0
SEED = 20240519
GOOD = {"text_input": "The good request", "max_tokens": 12, "ignore_eos": True}

ENSEMBLE = {
    **dict.fromkeys(("text_input", "messages", "acceptance_rule", "stop_words"), "BYTES"),
    **dict.fromkeys(("max_tokens", "min_tokens", "min_length", "top_k"), "INT32"),
    **dict.fromkeys(("max_draft_len", "num_draft_tokens", "deadline_ms"), "INT32"),
    **dict.fromkeys(("temperature", "top_p", "judge_threshold"), "FP32"),
    **dict.fromkeys(("chat", "exclude_input_in_output", "stream", "ignore_eos", "stop"), "BOOL"),
    **dict.fromkeys(("return_num_input_tokens", "return_num_output_tokens"), "BOOL"),
    **dict.fromkeys(("return_provenance", "return_judge_scores"), "BOOL"),
    "return_acceptance_record": "BOOL",
    "seed": "UINT64",
}
CORE = ENSEMBLE | {"input_ids": "INT32", "input_text": "BYTES"}
POST = {
    **{"sequence": "INT64", "output_ids": "INT32", "ended": "BOOL", "finish_reason": "BYTES"},
    **{"text_before": "BYTES", "stop_strings": "BYTES", "with_token_texts": "BOOL"},
}
MODELS = {
    "ensemble": (ENSEMBLE, ["text_input"], 70),
    "judge_decoding": (CORE, ["input_ids"], 14),
    "preprocessing": (ENSEMBLE, ["text_input"], 5),
    "postprocessing": (POST, list(POST), 8),
    "no_such_model": (ENSEMBLE, ["text_input"], 1),
    "": (ENSEMBLE, ["text_input"], 2),
}
DTYPES: dict[str, Any] = {
    **{"INT32": np.int32, "INT64": np.int64, "UINT64": np.uint64, "FP32": np.float32},
    **{
        "FP64": np.float64,
        "INT8": np.int8,
        "UINT8": np.uint8,
        "BOOL": np.bool_,
        "FP16": np.float16,
    },
}
INTEGERS = [0, 1, 2, 3, 5, 7, 16, 17, 255, 256, 1000, -1, -7, 2**31 - 1, -(2**31), 2**15]
REALS = [0.0, 0.5, 0.99, 1.0, -0.0, 1e-45, 3.4e38, -1.0, 100.0, 101.0, *map(float, ("nan", "inf"))]
TEXTS = [
    *(b"", b"Hi", b"a" * 240, b"a" * 300, b"\0", b"\xff\xfe", b"\xed\xa0\x80", b"\xc3"),
    *("naïve café", "日本語のテキスト", "🙂👩\u200d👩\u200d👧", "e\u0301\u0302" * 20),
    *("\u202eabc", "\ufeff", "\u2028"),
    *(b"<|im_start|>system\n", b"</s><s>", b"{{ 7 * 7 }}", b"{% raw %}", b"%s%n%x", b"' OR 1=1 --"),
    *(b"none", b"strict", b"judge", b"rejection", b"typical", b"fly", b"synthetic", b"Judge"),
    *(b"stop", b"length", b"x" * 1025, b"z" * 2001, b"y" * 50_000),
]
MESSAGES = [
    *('[{"role": "user", "content": "Hi"}]', "[]", "{}", "[{}]", "null", "[1]", '"', "[" * 5000),
    *('[{"role": "user"}]', '[{"role": "x", "content": ["a"]}]', '[{"role": 1, "content": null}]'),
    *('[{"role": "user", "content": "\\ud800"}]', '[{"role": "", "content": ""}]', "NaN"),
    *('[{"role":"user","content":"a","__class__":"b"}]', '{"a":' * 3000, "[" + "1," * 900 + "1]"),
]
SHAPES = [[1], [], [1, 2], [2, 1], [1, 0], [0], [1, 1, 1], [-1, 1], [1, 10**9], [2**62, 4], [0, 5]]
BODIES = [
    *(b"", b"{", b"null", b"[]", b"3", b'"a"', b"{}", b"\xff\xfe", b"[" * 20_000, b"\0" * 100),
    *(b'{"a":' * 5000, b"{" + b'"text_input":"a",' * 300 + b'"b":1}'),
]
JSON_VALUES: list[Any] = [
    *(True, False, None, "text", "", [], [1, 2], {}, {"a": []}, 10**30, 1e300, -(10**19)),
    *(["a"] * 40, [[1]], "none", "judge", "é🙂"),
]
JSON_RIGHT: dict[str, list[Any]] = {
    **{"BYTES": ["a", "strict", "none", "judge"], "BOOL": [True, False], "UINT64": [0, 7]},
    **{"INT32": [1, 2, 3, 5, 300], "FP32": [0.5, 0.9, 1.0, 7.5]},
}


class Grammar:
    """Makes requests from a seeded random generator."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)

    def one_in(self, n: int) -> bool:
        return self.chance.randrange(n) == 0

    def request(self) -> Any:
        weights = [weight for _, _, weight in MODELS.values()]
        model = self.chance.choices(list(MODELS), weights)[0]
        known, needed, _ = MODELS[model]
        names = list(needed)
        names += self.chance.sample(list(known), k=self.chance.randint(0, min(5, len(known))))
        if not self.one_in(6):
            names = list(dict.fromkeys(names))  # otherwise some names occur twice
        if self.one_in(8) and names:
            names.remove(self.chance.choice(names))
        if self.one_in(20):
            names.append(self.chance.choice(["nothing", "", "text_output", "ü" * 40, "input_ids"]))
        message = service_pb2.ModelInferRequest(model_name=model)
        if self.one_in(2):
            message.id = self.chance.choice(["same", "other", "", "é" * 100, "x" * 3000])
        if self.one_in(15):
            message.model_version = self.chance.choice(["1", "2", "-1", "latest", "0"])
        if self.one_in(4):
            message.parameters["triton_enable_empty_final_response"].bool_param = True
        if self.one_in(25):
            self._parameter(message)
        if self.one_in(20):
            message.outputs.add(name=self.chance.choice(["text_output", "nothing", "output_ids"]))
        for name in names:
            self._tensor(message, name, known.get(name, "INT32"))
        if self.one_in(30) and message.raw_input_contents:
            message.raw_input_contents.pop()
        if self.one_in(60):
            message.raw_input_contents.append(b"more")
        return message

    def _parameter(self, message: Any) -> None:
        name = self.chance.choice(["sequence_id", "priority", "timeout", "sequence_start", "abc"])
        kind = self.chance.choice(["int64_param", "string_param", "bool_param", "uint64_param"])
        value = {"string_param": "x" * 100, "bool_param": True}.get(
            kind, self.chance.choice([1, 7])
        )
        setattr(message.parameters[name], kind, value)

    def _tensor(self, message: Any, name: str, kind: str) -> None:
        if self.one_in(25):
            kind = self.chance.choice([*DTYPES, "BYTES", "BF16", "STRING", ""])
        count = self._count(name)
        shape = [1, count]
        if self.one_in(25):
            shape = self.chance.choice(SHAPES)
        tensor = message.inputs.add(name=name, datatype=kind, shape=shape)
        if self.one_in(60):
            tensor.parameters["shared_memory_region"].string_param = "region"
            tensor.parameters["shared_memory_byte_size"].int64_param = 8
        data = self._data(name, kind, count)
        if self.one_in(40):
            data = data[: self.chance.randrange(len(data) + 1)]
        elif self.one_in(80):
            data += self.chance.randbytes(self.chance.randint(1, 9))
        if self.one_in(50):
            tensor.contents.int_contents.append(3)  # beside the raw contents
        message.raw_input_contents.append(data)

    def _count(self, name: str) -> int:
        if name in ("stop_words", "stop_strings"):
            return self.chance.choice([0, 1, 2, 32, 33])
        if name in ("input_ids", "output_ids"):
            return self.chance.choice([0, 1, 3, 10, 200, 255, 256, 400])
        return self.chance.choice([1] * 30 + [0, 2])

    def _data(self, name: str, kind: str, count: int) -> bytes:
        if kind == "BYTES" or kind not in DTYPES:
            parts = [self._text(name) for _ in range(count)]
            sizes = [len(part) for part in parts]
            if self.one_in(60) and sizes:  # wrong lengths
                sizes[0] = self.chance.choice([0, sizes[0] + 1, 2**31, 2**32 - 1])
            return b"".join(struct.pack("<I", n) + p for n, p in zip(sizes, parts, strict=True))
        dtype = DTYPES[kind]
        if kind == "BOOL":
            return bytes(self.chance.choices([0, 1, 1, 2, 255], k=count))
        if np.issubdtype(dtype, np.floating):
            values = np.array(self.chance.choices(REALS, k=count))
        elif name in ("input_ids", "output_ids"):
            odd = self.one_in(3)
            values = np.array([self._id(odd) for _ in range(count)], np.int64)
        else:
            values = np.array(self.chance.choices(INTEGERS, k=count), np.int64)
        with np.errstate(all="ignore"):
            return values.astype(dtype).tobytes()

    def _id(self, odd: bool) -> int:
        if odd and self.one_in(20):
            return self.chance.choice([-1, 256, 255, 2**31 - 1, -(2**31)])
        return self.chance.randrange(256)

    def _text(self, name: str) -> bytes:
        if name == "messages":
            value: Any = self.chance.choice(MESSAGES)
        elif self.one_in(10):
            return self.chance.randbytes(self.chance.randint(0, 300))
        elif name == "acceptance_rule" and not self.one_in(4):
            value = self.chance.choice(["none", "strict", "judge", "rejection", "topk", "typical"])
        else:
            value = self.chance.choice(TEXTS)
        return value if isinstance(value, bytes) else value.encode("utf-8", "surrogatepass")

    def body(self) -> bytes:
        """The body of an HTTP `generate`."""
        if self.one_in(6):
            return self.chance.choice(BODIES)
        if self.one_in(12):
            return self.chance.randbytes(self.chance.randint(1, 2000))
        values: dict[str, Any] = {"text_input": self._text("text_input").decode(errors="replace")}
        for name in self.chance.sample(list(ENSEMBLE), k=self.chance.randint(0, 3)):
            values[name] = self.chance.choice(JSON_RIGHT[ENSEMBLE[name]])
        if self.one_in(2):
            name = self.chance.choice([*ENSEMBLE, "id", "parameters", "nothing"])
            values[name] = self.chance.choice([*INTEGERS, *REALS[:5], *JSON_VALUES])
        if self.one_in(10):
            del values["text_input"]
        made = json.dumps(values, ensure_ascii=self.one_in(2)).encode("utf-8", "surrogatepass")
        return made[: self.chance.randrange(len(made))] if self.one_in(15) else made


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
        "limits": {"max_sequences": 4, "max_context": 256, "max_tokens": 16},
        "server": {"max_queue": 64, "max_prompt_bytes": 2000, "drain_s": 5},
    }
    path = folder / "deployment.yaml"
    path.write_text(yaml.safe_dump(document))
    with Serving(path, folder) as running:
        yield running
        assert running.stop() == 0, running.output


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


async def send(stub: Any, message: Any, kinds: Counter[str]) -> None:
    """One request; it must end with responses or an error, and not by a lost connection."""
    said = "nothing"
    try:
        async for response in stub.ModelStreamInfer(iter([message]), timeout=ANSWER_S):
            said = "error" if response.error_message else "answer"
    except grpc.RpcError as error:
        said = error.code().name
    kinds[said] += 1
    assert said not in ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "UNKNOWN"), message


def test_grpc_requests_that_are_almost_right(server: Serving, good: str) -> None:
    before = server.processes()
    grammar, kinds = Grammar(SEED), Counter[str]()

    async def run() -> None:
        async with grpc.aio.insecure_channel(server.url, options=CHANNEL) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            messages = (grammar.request() for _ in range(GRPC_CASES))

            async def worker() -> None:
                for message in messages:
                    await send(stub, message, kinds)

            await asyncio.gather(*(worker() for _ in range(AT_ONCE)))

    asyncio.run(run())
    assert kinds.total() == GRPC_CASES
    # Both sides of the contract occurred often.
    assert kinds["answer"] > GRPC_CASES / 20 and kinds["error"] > GRPC_CASES / 5, kinds
    unharmed(server, good)
    assert server.processes() == before


def test_http_bodies_that_are_almost_right(server: Serving, good: str) -> None:
    before = server.processes()
    grammar = Grammar(SEED + 1)
    bodies = [grammar.body() for _ in range(HTTP_CASES)]
    paths = [
        "ensemble/generate",
        "ensemble/generate_stream",
        "ensemble/infer",
        "judge_decoding/generate",
    ]
    chosen = [grammar.chance.choices(paths, [6, 4, 1, 1])[0] for _ in bodies]

    def post(path: str, body: bytes) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", server.ports[0], timeout=ANSWER_S)
        try:
            connection.request("POST", f"/v2/models/{path}", body)
            answer = connection.getresponse()
            answer.read()
            return answer.status
        finally:
            connection.close()

    with ThreadPoolExecutor(8) as pool:
        kinds = Counter(pool.map(post, chosen, bodies))
    # Triton itself says 500 if a body is no JSON, or has types other than the model's.
    assert set(kinds) <= {200, 400, 404, 500, 501, 503}, kinds
    assert kinds[200] > HTTP_CASES / 20 and kinds[400] > HTTP_CASES / 20, kinds
    unharmed(server, good)
    assert server.processes() == before
