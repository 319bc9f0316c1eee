"""The endpoint's own OpenAPI description, made from the requests' models."""

from __future__ import annotations

from typing import Any

from judge_decoding import __version__
from judge_decoding.serving.openai.schema import ChatRequest, Common, CompletionRequest

_ANSWERS = {
    "200": "the answer, or its server-sent events",
    "400": "a field is wrong, unknown or not supported",
    "401": "no token, or a wrong one",
    "404": "no such model",
    "413": "the body is too large",
    "429": "too many requests; Retry-After says when to come back",
    "503": "the server is starting, or ends",
}
_PATHS: dict[str, type[Common]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
}


def description(name: str) -> dict[str, Any]:
    """The document of `GET /openapi.json`. name is the deployment's."""
    schemas = dict[str, Any]()
    paths = dict[str, Any]()
    for path, kind in _PATHS.items():
        schema = kind.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schemas[kind.__name__] = schema
        body = {"schema": {"$ref": f"#/components/schemas/{kind.__name__}"}}
        paths[path] = {
            "post": {
                "requestBody": {"required": True, "content": {"application/json": body}},
                "responses": {code: {"description": text} for code, text in _ANSWERS.items()},
            }
        }
    for path in ("/v1/models", "/health"):
        paths[path] = {"get": {"responses": {"200": {"description": "as OpenAI has it"}}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": f"judge decoding: {name}", "version": __version__},
        "paths": paths,
        "components": {"schemas": schemas},
    }
