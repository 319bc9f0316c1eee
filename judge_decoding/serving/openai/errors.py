"""Errors in OpenAI's shape: {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

import math
from typing import Any

from judge_client.errors import JudgeClientError, ServerBusy

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """A refusal, or a failure, with its HTTP status."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = dict[str, str]()
        if retry_after_s is not None:
            self.headers["Retry-After"] = str(max(1, math.ceil(retry_after_s)))

    def body(self) -> dict[str, Any]:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {
            "error": {
                "message": str(self),
                "type": _TYPES.get(self.status, kind),
                "param": self.param,
                "code": self.code,
            }
        }


def from_client(error: JudgeClientError) -> ApiError:
    """The answer to a request that the server refused, or could not finish."""
    if isinstance(error, ServerBusy):
        return ApiError(429, str(error), code="server_busy", retry_after_s=error.retry_after_s)
    if error.status is None:
        field, found, _ = str(error).partition(": ")
        return ApiError(400, str(error), param=field if found and field.isidentifier() else None)
    if error.status == "UNAVAILABLE":
        return ApiError(
            503, f"the server is not there: {error}", code="unavailable", retry_after_s=1
        )
    return ApiError(500, str(error), code=error.status.lower())
