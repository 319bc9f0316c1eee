"""The core model's order to the postprocessing: which tokens of which sequence become text.

Clients can call the postprocessing by name too. An order is therefore signed with a secret of the
server's processes (`run_folder.secret`), and an unsigned one is refused before it is parsed.
"""

from __future__ import annotations

import hmac
import json
from typing import Any

from judge_decoding.errors import UserError
from judge_decoding.serving.request import to_json

_SIZE = 64
"""Bytes of the signature, which precedes the document."""


def sign(document: dict[str, Any], secret: bytes) -> bytes:
    data = to_json(document)
    return _signature(data, secret) + data


def read(order: bytes, secret: bytes) -> dict[str, Any]:
    """The signed document; UserError for anything else."""
    signature, data = order[:_SIZE], order[_SIZE:]
    if not hmac.compare_digest(signature, _signature(data, secret)):
        raise UserError("detokenize: it is not signed by this server; call the model `ensemble`")
    return dict(json.loads(data))


def _signature(data: bytes, secret: bytes) -> bytes:
    """The signature as text, since a caller of the core model over HTTP gets it in JSON."""
    return hmac.digest(secret, data, "sha256").hex().encode()
