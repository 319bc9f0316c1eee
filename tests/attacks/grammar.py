"""A grammar of requests that are almost right.

Known and unknown tensors, each sometimes with a wrong type, shape, length or value, for all models,
over gRPC and HTTP; sometimes one that is far too large; and signed orders of the server, replayed,
cut and changed. The seed decides everything but the orders.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from tritonclient.grpc import service_pb2

ENSEMBLE = {
    **dict.fromkeys(("text_input", "messages", "acceptance_rule", "stop_words"), "BYTES"),
    **dict.fromkeys(("bad_words", "logit_bias"), "BYTES"),
    **dict.fromkeys(("end_id", "stop_token_ids", "logprobs", "n"), "INT32"),
    **dict.fromkeys(("repetition_penalty", "presence_penalty"), "FP32"),
    **dict.fromkeys(("frequency_penalty", "min_p"), "FP32"),
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
PRE = {
    **{"text_input": "BYTES", "messages": "BYTES", "chat": "BOOL", "stop": "BOOL"},
    "exclude_input_in_output": "BOOL",
}
POST = {"detokenize": "BYTES"}
MODELS = {
    "ensemble": (ENSEMBLE, ["text_input"], 70),
    "judge_decoding": (CORE, ["input_ids"], 14),
    "preprocessing": (PRE, ["text_input"], 8),
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
BIASES = [
    *("{}", '{"65": 5}', '{"65": -100, "66": 100.0}', '{"65": 101}', '{"-1": 1}', '{"999999": 1}'),
    *('{"a": 1}', '{"65": null}', '{"65": 1e999}', '{"65": NaN}', "[]", "null", '{"65":' * 3000),
    *('{"99999999999999999999": 1}', '{"65": 1, "65": 2}', '{"65": "1"}'),
]
LISTS = ("stop_words", "bad_words", "stop_token_ids")
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


LARGE: list[bytes] = [
    b"x" * 1_200_000,
    b"\1" * 3_000_000,
    b"[" + b"1," * 400_000 + b"1]",
    b"[" * 110_000,
    json.dumps([{"role": "user", "content": ""}] * 20_000).encode(),
    b"9" * 100_000,
]
MANY = 1000
COUNTS = [33, 5000, 500_000]
"""Of strings and ids, where there are too many."""


class Grammar:
    """Makes requests from a seeded random generator."""

    def __init__(self, seed: int, orders: Sequence[bytes] = ()) -> None:
        """orders  signed by the server, for the postprocessing"""
        self.chance = random.Random(seed)
        self.orders = orders

    def one_in(self, n: int) -> bool:
        return self.chance.randrange(n) == 0

    def request(self) -> Any:
        weights = [weight for _, _, weight in MODELS.values()]
        model = self.chance.choices(list(MODELS), weights)[0]
        known, needed, _ = MODELS[model]
        names = list(needed)
        names += self.chance.sample(list(known), k=self.chance.randint(0, min(5, len(known))))
        if "max_tokens" in known and not self.one_in(8):
            names.append("max_tokens")  # or the default, which is long
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
        if name in (*LISTS, "input_ids") and self.one_in(100):
            return self.chance.choice(COUNTS)
        if name in LISTS:
            return self.chance.choice([0, 1, 2, 32, 33, 65, 257])
        if name in ("input_ids", "output_ids"):
            return self.chance.choice([0, 1, 3, 10, 200, 255, 256, 400])
        return self.chance.choice([1] * 30 + [0, 2])

    def _data(self, name: str, kind: str, count: int) -> bytes:
        if count > MANY:  # all empty, or zero: making others would hold up the client itself
            return bytes(4 * count)
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
            few = name == "max_tokens" and not self.one_in(4)
            values = np.array(
                self.chance.choices(range(1, 17) if few else INTEGERS, k=count), np.int64
            )
        with np.errstate(all="ignore"):
            return values.astype(dtype).tobytes()

    def _id(self, odd: bool) -> int:
        if odd and self.one_in(20):
            return self.chance.choice([-1, 256, 255, 2**31 - 1, -(2**31)])
        return self.chance.randrange(256)

    def _order(self) -> bytes:
        order = self.chance.choice(self.orders)
        if self.one_in(3):
            at = self.chance.randrange(len(order))
            return order[:at] + bytes([order[at] ^ self.chance.randint(1, 255)]) + order[at + 1 :]
        return order[: self.chance.randrange(len(order))] if self.one_in(3) else order

    def _text(self, name: str) -> bytes:
        if name == "detokenize" and self.orders and not self.one_in(4):
            return self._order()
        if self.one_in(150):
            return self.chance.choice(LARGE)
        if name == "logit_bias" and not self.one_in(4):
            value: Any = self.chance.choice(BIASES)
        elif name == "messages":
            value = self.chance.choice(MESSAGES)
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
        values["max_tokens"] = self.chance.randint(1, 16)
        for name in self.chance.sample(list(ENSEMBLE), k=self.chance.randint(0, 3)):
            values[name] = self.chance.choice(JSON_RIGHT[ENSEMBLE[name]])
        if self.one_in(2):
            name = self.chance.choice([*ENSEMBLE, "id", "parameters", "nothing"])
            values[name] = self.chance.choice([*INTEGERS, *REALS[:5], *JSON_VALUES])
        if self.one_in(10):
            del values["text_input"]
        made = json.dumps(values, ensure_ascii=self.one_in(2)).encode("utf-8", "surrogatepass")
        return made[: self.chance.randrange(len(made))] if self.one_in(15) else made
