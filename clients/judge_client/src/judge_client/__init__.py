"""Client of a server started by `judge-decoding serve`. It imports nothing of the library.

wire.py        requests and answers as Triton tensors
echo.py        values in messages, at most 200 characters of each
errors.py      what can go wrong, and how a message says so
connection.py  addresses, TLS, token
exchange.py    one request without its I/O: the part that both clients share
client.py      JudgeClient: generate, stream, cancel
aio.py         AsyncJudgeClient: the same with asyncio
metrics.py     the server's metrics page
terminal.py    coloured provenance, the legend, a conversation
commands/      `judge-client generate | chat | probe` (needs the extra `cli`)

Importing the package loads numpy only; gRPC is loaded when a client is made.
"""

from judge_client.client import JudgeClient
from judge_client.connection import Access
from judge_client.errors import JudgeClientError, ServerBusy, ServerStopping
from judge_client.wire import Answer, Chunk, GeneratedToken, GenerateRequest

__version__ = "0.1.0"

__all__ = [
    "Access",
    "Answer",
    "Chunk",
    "GenerateRequest",
    "GeneratedToken",
    "JudgeClient",
    "JudgeClientError",
    "ServerBusy",
    "ServerStopping",
]
