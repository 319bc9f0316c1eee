"""The in-process side of a comparison with a server, measured block by block on request.

    judge-decoding bench-worker --config FILE

clients/bench_server.py drives it and measures the server in between, so that what the machine does
meanwhile hits both. It waits on stdin without using the CPU. One JSON document a line:

    out  {"prompts": [text], "provenance": {}}                             once, loaded and warm
    in   {"prompts": [text], "max_tokens": n}
    out  [{"seconds": s, "first_s": s, "tokens": n, "text": text}]         one a prompt, in order

The rule is the deployment's, decoding greedy. `seconds` is the whole answer, `first_s` the time to
its first tokens: prefill and first round, which are one pass here. Encoding the prompt is in
neither.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import IO, Any

from judge_decoding import provenance
from judge_decoding.bench import WARM_UP_TOKENS, RuleSystem
from judge_decoding.pipeline import Pipeline


def run(
    pipeline: Pipeline,
    prompts: Sequence[str],
    *,
    lines: IO[str] = sys.stdin,
    out: IO[str] = sys.stdout,
) -> None:
    """Serve until `lines` ends."""
    deployment = pipeline.deployment
    system = RuleSystem(pipeline, deployment.default_acceptance())

    def answer(text: str, max_tokens: int) -> dict[str, Any]:
        ids = pipeline.tokenizer.chat([{"role": "user", "content": text}])
        one = system.answer(ids, max_tokens)
        assert one.result is not None
        return {
            "seconds": one.seconds,
            "first_s": one.rounds[0][0],
            "tokens": len(one.result.token_ids),
            "text": one.result.text,
        }

    def send(document: Any) -> None:
        print(json.dumps(document, allow_nan=False), file=out, flush=True)

    answer(prompts[0], min(WARM_UP_TOKENS, deployment.limits.max_tokens))
    source = {
        **provenance.collect(),
        "deployment": deployment.name,
        "dtype": deployment.dtype,
        "rule": system.name,
        "max_draft_len": deployment.max_draft_len,
    }
    send({"prompts": list(prompts), "provenance": source})
    for line in lines:
        order = json.loads(line)
        send([answer(text, order["max_tokens"]) for text in order["prompts"]])
