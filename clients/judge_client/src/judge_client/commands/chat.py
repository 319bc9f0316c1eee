"""Talk to a server.

    judge-client chat -u 127.0.0.1:8001

/new forgets the conversation, /quit or Ctrl-D ends it; Ctrl-C cancels the answer that is coming.
"""

from __future__ import annotations

import time
from dataclasses import replace

from judge_client import terminal
from judge_client.client import JudgeClient
from judge_client.commands import options
from judge_client.commands.answer import show, speed_line
from judge_client.errors import JudgeClientError
from judge_client.exchange import new_request_id
from judge_client.wire import MODEL, GenerateRequest


def chat(
    url: options.Url = options.DEFAULT_URL,
    model: options.Model = MODEL,
    rule: options.Rule = None,
    threshold: options.Threshold = None,
    max_tokens: options.MaxTokens = None,
    max_draft_len: options.MaxDraftLen = None,
    temperature: options.Temperature = None,
    top_k: options.TopK = None,
    top_p: options.TopP = None,
    seed: options.Seed = None,
    timeout: options.Timeout = None,
) -> None:
    """Talk to a server. /new forgets the conversation, /quit or Ctrl-D ends it."""
    request = GenerateRequest(
        max_tokens=max_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        rule=rule,
        threshold=threshold,
        max_draft_len=max_draft_len,
        provenance=True,
        record=True,
    )
    out = terminal.console()
    with JudgeClient(url, model=model, timeout=timeout) as client:
        client.check()

        def send(history: list[dict[str, str]]) -> str:
            asked = replace(request, messages=history)
            began = time.perf_counter()
            try:
                answer = show(client, asked, out, request_id=new_request_id())
            except JudgeClientError as error:
                if error.status == "UNAVAILABLE":
                    raise
                # Refused (the conversation no longer fits), or too late.
                raise terminal.TurnRefused(f"{error}; /new starts over") from None
            out.print(speed_line([answer], time.perf_counter() - began), style="dim")
            return answer.text

        terminal.converse(out, send)
