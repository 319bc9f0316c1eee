"""The core model's order to the postprocessing: which tokens of which sequence become text.

Clients can call the postprocessing by name too. An order is therefore signed with a secret of the
server's processes (`run_folder.secret`), and an unsigned one is refused before it is parsed.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import sys
from typing import Any, NamedTuple

from judge_decoding.config import Deployment
from judge_decoding.errors import UserError
from judge_decoding.serving.bounds import MAX_STOP_BYTES, MAX_STOP_STRINGS, TEMPLATE_BYTES
from judge_decoding.serving.request import to_json

_SIZE = 64
"""Bytes of the signature, which precedes the document."""


class Part(NamedTuple):
    """A part of an order that is made beforehand, because it may be large."""

    data: bytes
    digest: bytes


def part(document: dict[str, Any]) -> Part:
    data = to_json(document)
    return Part(data, hashlib.sha256(data).digest())


NOTHING = part({})


def sign(document: dict[str, Any], secret: bytes, rest: Part = NOTHING) -> bytes:
    """The signature, the document on one line, and `rest`, which costs only its copying."""
    data = to_json(document)
    return b"%b%b\n%b" % (_signature(data, rest.digest, secret), data, rest.data)


def read(order: bytes, secret: bytes, most: int = sys.maxsize) -> dict[str, Any]:
    """The signed document and its rest; UserError for anything else.

    most  bytes of the longest order that the server makes
    """
    if len(order) <= most:
        data, _, rest = order[_SIZE:].partition(b"\n")
        signature = _signature(data, hashlib.sha256(rest).digest(), secret)
        if hmac.compare_digest(order[:_SIZE], signature):
            return {**json.loads(data), **json.loads(rest)}
    raise UserError("detokenize: it is not signed by this server; call the model `ensemble`")


def longest(deployment: Deployment) -> int:
    """Bytes of the longest order: JSON writes up to six for one of a text, and 12 for an id."""
    texts = deployment.server.max_prompt_bytes + TEMPLATE_BYTES + MAX_STOP_STRINGS * MAX_STOP_BYTES
    return 6 * texts + 12 * deployment.limits.max_context + 1000


def _signature(data: bytes, digest: bytes, secret: bytes) -> bytes:
    """The signature as text, since a caller of the core model over HTTP gets it in JSON."""
    return hmac.digest(secret, data + digest, "sha256").hex().encode()
