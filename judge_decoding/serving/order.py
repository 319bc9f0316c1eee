"""The core's order to the postprocessing: which tokens become text, of which sequence.

Clients can call the postprocessing by name too. So an order is signed with a secret of the server's
processes (`run_folder.secret`), and one that is not is refused before it is read.
"""

from __future__ import annotations

import hmac
import json
from typing import Any

from judge_decoding.errors import UserError
from judge_decoding.serving.request import to_json

_SIZE = 64
"""Of a signature, in front of the document."""


def sign(document: dict[str, Any], secret: bytes) -> bytes:
    data = to_json(document)
    return _signature(data, secret) + data


def read(order: bytes, secret: bytes) -> dict[str, Any]:
    """What was signed; UserError for anything else."""
    signature, data = order[:_SIZE], order[_SIZE:]
    if not hmac.compare_digest(signature, _signature(data, secret)):
        raise UserError("detokenize: it is not signed by this server; call the model `ensemble`")
    return dict(json.loads(data))


def _signature(data: bytes, secret: bytes) -> bytes:
    """As text, for a caller of the core over HTTP gets it in JSON."""
    return hmac.digest(secret, data, "sha256").hex().encode()
