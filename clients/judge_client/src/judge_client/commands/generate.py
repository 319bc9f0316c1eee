"""Ask a server, and see where every token of the answer comes from.

    judge-client generate -u 127.0.0.1:8001 --prompt "What is a judge?" --stream

Ctrl-C cancels on the server. With `--json` the last line of stdout is one JSON document of the same
shape as that of `judge-decoding generate --json`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from judge_client import terminal
from judge_client.client import JudgeClient
from judge_client.commands import options
from judge_client.commands.answer import show, speed_line
from judge_client.exchange import new_request_id
from judge_client.wire import MODEL, Answer, GenerateRequest


def generate(
    prompt: Annotated[list[str], typer.Option(help="May be repeated: one after another.")],
    url: options.Url = options.DEFAULT_URL,
    model: options.Model = MODEL,
    stream: Annotated[bool, typer.Option("--stream", help="Show the answer as it comes.")] = False,
    chat: Annotated[bool, typer.Option(help="Put the prompt in the chat template.")] = True,
    rule: options.Rule = None,
    threshold: options.Threshold = None,
    max_tokens: options.MaxTokens = None,
    min_tokens: Annotated[int | None, typer.Option(help="Smallest number of new tokens.")] = None,
    max_draft_len: options.MaxDraftLen = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    seed: options.Seed = None,
    stop: Annotated[list[str] | None, typer.Option(help="May be repeated.")] = None,
    timeout: options.Timeout = None,
    deadline_ms: Annotated[
        int | None,
        typer.Option(min=1, help="The server ends an answer after this time, queue included."),
    ] = None,
    as_json: options.Json = False,
) -> int:
    """Answer prompts and show where every token comes from."""
    out = terminal.console()
    answers: list[Answer] = []
    with JudgeClient(url, model=model, timeout=timeout) as client:
        client.check()
        began = time.perf_counter()
        for text in prompt:
            request = GenerateRequest(
                text,
                chat=chat,
                max_tokens=max_tokens,
                min_tokens=min_tokens,
                stop=stop or (),
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                seed=seed,
                rule=rule,
                threshold=threshold,
                max_draft_len=max_draft_len,
                provenance=True,
                judge_scores=True,
                record=True,
                deadline_ms=deadline_ms,
            )
            if len(prompt) > 1:
                out.print(f"> {text}", style="bold", soft_wrap=True)
            number = new_request_id()
            answers.append(show(client, request, out, request_id=number, stream=stream))
            if answers[-1].finish_reason == "cancelled":
                break
        seconds = time.perf_counter() - began
    out.print(speed_line(answers, seconds), style="dim")
    if as_json:
        terminal.print_json(document(prompt, answers, seconds))
    else:
        terminal.print_legend(out)
    return 130 if answers[-1].finish_reason == "cancelled" else 0


def document(prompts: Sequence[str], answers: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """The JSON document. The prompts after a cancelled one have no answer."""
    tokens = sum(answer.num_output_tokens for answer in answers)
    results = [
        {
            "prompt": prompt,
            "text": answer.text,
            "token_ids": [token.id for token in answer.tokens],
            "finish_reason": answer.finish_reason,
            "provenance": [token.provenance for token in answer.tokens],
            "judge_scores": [token.score for token in answer.tokens],
            "speculative_decoding": answer.record,
        }
        for prompt, answer in zip(prompts, answers, strict=False)
    ]
    timing = {"seconds": seconds, "tokens": tokens, "tokens_per_s": tokens / max(seconds, 1e-9)}
    return {"results": results, "timing": timing}
