"""Limits on a request's raw tensors, checked before anything in them is decoded or copied.

A client may send 2 GB. The loop's process has one interpreter lock, so that work on one request
delays the tokens of all others. docs/operations/security.md has the limits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from judge_decoding.config import Deployment
from judge_decoding.decoding.loop import context_error
from judge_decoding.errors import UserError

Array = np.ndarray[Any, Any]
Tensors = Mapping[str, Array]

MAX_STOP_STRINGS = 32
MAX_STOP_BYTES = 1024
"""Limit of one stop string: text is held back while it may still become one."""
MAX_STOP_IDS = 256
MAX_BAD_WORDS = 32
MAX_BAD_WORD_BYTES = 1024
MAX_BIASES = 1024
MAX_BIAS_BYTES = 65_536
"""Of the JSON text of `logit_bias`."""
MAX_RULE_BYTES = 64
MAX_REQUEST_ID_BYTES = 256
MAX_TURNS = 2000
"""Turns of a conversation. Each costs the chat template about 40 us."""
TEMPLATE_BYTES = 65_536
"""What a chat template may add to the messages where the prompt is returned with the answer."""
MAX_STRINGS = 64
"""Strings of a tensor that are decoded; no input may have as many."""
LISTS = {
    "stop_words": ("strings", MAX_STOP_STRINGS),
    "bad_words": ("strings", MAX_BAD_WORDS),
    "stop_token_ids": ("ids", MAX_STOP_IDS),
}
"""Inputs of several values: what they are, and how many at most."""
PROMPT_TEXTS = ("text_input", "messages")


def check_tensors(tensors: Tensors, deployment: Deployment, request_id: str = "") -> None:
    """UserError for an input that is larger than any that can be served.

    tensors  name -> array of any shape; unknown names only need to hold one value
    """
    if len(request_id) > MAX_REQUEST_ID_BYTES or not request_id.isascii():
        size = len(request_id.encode(errors="replace"))
        if size > MAX_REQUEST_ID_BYTES:
            raise UserError(f"request id: {size} bytes; give at most {MAX_REQUEST_ID_BYTES}")
    for name, array in tensors.items():
        _check_count(name, array, deployment)
    prompt_bytes = deployment.server.max_prompt_bytes
    size = sum(_size(tensors[name]) for name in PROMPT_TEXTS if name in tensors)
    if size > prompt_bytes:
        raise UserError(
            f"prompt: {size} bytes are more than server.max_prompt_bytes {prompt_bytes}"
        )
    if "input_text" in tensors:
        _check_bytes("input_text", tensors["input_text"], longest_string(deployment))
    if "acceptance_rule" in tensors:
        _check_bytes("acceptance_rule", tensors["acceptance_rule"], MAX_RULE_BYTES)
    if "stop_words" in tensors and _size(tensors["stop_words"]) > MAX_STOP_BYTES:
        raise UserError(f"stop_words: one is longer than {MAX_STOP_BYTES} bytes")
    if "bad_words" in tensors and _size(tensors["bad_words"]) > MAX_BAD_WORD_BYTES:
        raise UserError(f"bad_words: one is longer than {MAX_BAD_WORD_BYTES} bytes")
    if "logit_bias" in tensors:
        _check_bytes("logit_bias", tensors["logit_bias"], MAX_BIAS_BYTES)


def longest_string(deployment: Deployment) -> int:
    """Bytes of the longest string that any input may hold."""
    return deployment.server.max_prompt_bytes + TEMPLATE_BYTES


def _check_count(name: str, array: Array, deployment: Deployment) -> None:
    if name == "input_ids":
        if array.size >= deployment.limits.max_context:
            raise context_error(array.size, deployment.limits.max_context)
    elif name in LISTS:
        what, most = LISTS[name]
        if array.size > most:
            raise UserError(f"{name}: {array.size} {what}; give at most {most}")
    elif array.size != 1:
        raise UserError(f"{name}: {array.size} values; give one")


def _check_bytes(name: str, array: Array, most: int) -> None:
    if (size := _size(array)) > most:
        raise UserError(f"{name}: {size} bytes; give at most {most}")


def _size(array: Array) -> int:
    """Bytes of the longest string of an array; 0 where it holds no strings."""
    strings = (value for value in array.reshape(-1) if isinstance(value, (bytes, TooLong)))
    return max(map(len, strings), default=0)


@dataclass(frozen=True)
class TooLong:
    """Stands for a string that was not copied, since it is too long for anything."""

    size: int

    def __len__(self) -> int:
        return self.size


class _TooMany:
    """Stands for a tensor of more than MAX_STRINGS strings: an array of its shape without them."""

    def reshape(self, shape: Any) -> Array:
        return np.broadcast_to(np.array(b"", object), tuple(shape))


def read_strings(encoded: Any, *, most: int) -> Array | _TooMany:
    """The strings of a BYTES tensor: a little-endian length of four bytes before each.

    most  bytes of the longest string that is copied

    Replaces `deserialize_bytes_tensor` of Triton's Python backend, which the backend calls for
    every tensor before our code sees the request. That one reads 25 million empty strings for a
    minute. This one stops after MAX_STRINGS, and the caller refuses the array by its size.
    """
    data = memoryview(encoded)
    strings: list[bytes | TooLong] = []
    at = 0
    while at < len(data):
        if len(strings) == MAX_STRINGS:
            return _TooMany()
        start = at + 4
        size = int.from_bytes(data[at:start], "little")
        at = start + size
        if at > len(data):
            raise ValueError(f"a string ends at byte {at} of {len(data)}")
        strings.append(TooLong(size) if size > most else bytes(data[start:at]))
    array = np.empty(len(strings), object)
    for place, value in enumerate(strings):
        array[place] = value
    return array
