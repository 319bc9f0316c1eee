"""Talk to a server.

    python -m clients.chat -u 127.0.0.1:8001

/new forgets the conversation, /quit or Ctrl-D ends it; Ctrl-C cancels the answer that is coming.
"""

from __future__ import annotations

import time
from dataclasses import replace

from rich.console import Console

from clients import terminal
from clients.client import JudgeClient, new_request_id
from clients.wire import MODEL, JudgeClientError, Request


def chat(
    url: terminal.Url = terminal.DEFAULT_URL,
    model: terminal.Model = MODEL,
    rule: terminal.Rule = None,
    threshold: terminal.Threshold = None,
    max_tokens: terminal.MaxTokens = None,
    max_draft_len: terminal.MaxDraftLen = None,
    temperature: terminal.Temperature = None,
    top_k: terminal.TopK = None,
    top_p: terminal.TopP = None,
    seed: terminal.Seed = None,
    timeout: terminal.Timeout = None,
) -> None:
    """Talk to a server. /new forgets the conversation, /quit or Ctrl-D ends it."""
    request = Request(
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
    with JudgeClient(url, model=model, timeout=timeout) as client:
        client.check()
        converse(client, request, terminal.console())


def converse(client: JudgeClient, request: Request, out: Console) -> None:
    """Turns on stdin and stdout until /quit or the end of input; `request` is every turn's."""
    terminal.print_legend(out)
    history: list[dict[str, str]] = []
    while True:
        try:
            text = input("\n> ").strip()
        except (EOFError, KeyboardInterrupt):
            out.print()
            return
        if text == "/quit":
            return
        if text == "/new":
            history.clear()
        elif text:
            history.append({"role": "user", "content": text})
            try:
                answer = turn(client, request, history, out)
            except JudgeClientError as error:
                if error.status == "UNAVAILABLE":
                    raise
                history.pop()  # refused (the conversation no longer fits), or too late
                out.print(f"{error}; /new starts over", soft_wrap=True)
            else:
                history.append({"role": "assistant", "content": answer})


def turn(client: JudgeClient, request: Request, history: list[dict[str, str]], out: Console) -> str:
    """Stream one answer and return its text."""
    began = time.perf_counter()
    asked = replace(request, messages=history)
    answer = terminal.show(client, asked, out, request_id=new_request_id())
    out.print(terminal.speed_line([answer], time.perf_counter() - began), style="dim")
    return answer.text


if __name__ == "__main__":
    terminal.run(chat, "chat")
