"""`judge-decoding generate`: answer prompts, and show where every token comes from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from judge_decoding.commands.options import (
    DEMO,
    Config,
    Dtype,
    Json,
    MaxTokens,
    max_tokens_of,
    print_json,
    read_deployment,
)
from judge_decoding.decoding.contracts import MAX_LOGPROBS, RULES, Acceptance, Sampling
from judge_decoding.errors import UserError
from judge_decoding.text import SET_CHAT_TEMPLATE, check_unicode

if TYPE_CHECKING:
    from judge_decoding.config import Deployment
    from judge_decoding.decoding.loop import Result
    from judge_decoding.pipeline import Pipeline

NO_CHAT = f"use --no-chat, or {SET_CHAT_TEMPLATE}"


def generate(
    prompt: Annotated[
        list[str], typer.Option(help="A prompt. May be repeated; all of them form one batch.")
    ],
    config: Config = DEMO,
    max_tokens: MaxTokens = None,
    rule: Annotated[str | None, typer.Option(help=f"Acceptance rule: {', '.join(RULES)}.")] = None,
    threshold: Annotated[float | None, typer.Option(help="The judge's, in [0, 1].")] = None,
    max_draft_len: Annotated[int | None, typer.Option(help="Drafted tokens per round.")] = None,
    dtype: Dtype = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="0 is off.")] = 0,
    top_p: Annotated[float, typer.Option(help="1 is off.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1)] = 0,
    min_p: Annotated[float, typer.Option(min=0, max=1, help="0 is off.")] = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(min=0.01, max=100, help="1 is off; counts prompt and answer.")
    ] = 1.0,
    presence_penalty: Annotated[
        float, typer.Option(min=-2, max=2, help="0 is off; counts the answer.")
    ] = 0.0,
    frequency_penalty: Annotated[
        float, typer.Option(min=-2, max=2, help="0 is off; counts the answer.")
    ] = 0.0,
    logit_bias: Annotated[str, typer.Option(help='JSON: {"token id": bias}.')] = "",
    bad_words: Annotated[
        list[str] | None, typer.Option(help="A text that is not written. May be repeated.")
    ] = None,
    logprobs: Annotated[
        int | None,
        typer.Option(min=0, max=MAX_LOGPROBS, help="With --json: alternatives per token."),
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="A stop string. May be repeated.")] = None,
    end_id: Annotated[int | None, typer.Option(help="The only end token.")] = None,
    stop_token_ids: Annotated[
        list[int] | None, typer.Option(help="A further end token. May be repeated.")
    ] = None,
    min_tokens: Annotated[int, typer.Option(min=0, help="Tokens before an answer may end.")] = 0,
    ignore_eos: Annotated[bool, typer.Option(help="Continue after the end tokens.")] = False,
    chat: Annotated[
        bool, typer.Option(help="Put the prompt in the chat template, if the deployment has one.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Answer prompts and show where every token comes from."""
    from judge_decoding.commands import console
    from judge_decoding.decoding.sequence import Request
    from judge_decoding.pipeline import load_pipeline
    from judge_decoding.serving.request import biases, constraints, special_stops

    sampling = _sampling(temperature, top_k, top_p, seed)
    bias = biases(logit_bias)
    for token, value in bias.items():
        if not -100 <= value <= 100:
            raise UserError(f"logit-bias: {value:g} of token {token} is not in [-100, 100]")
    if logprobs is not None and not as_json:
        raise UserError("logprobs: they come with --json alone; add it")
    for text in stop or ():
        if not text:
            raise UserError("stop: a stop string must not be empty")
        check_unicode("stop", text)
    for text in prompt:
        check_unicode("prompt", text)
    # The schedule would shorten a draft length that was asked for.
    schedule: dict[int, int] | None = None if max_draft_len is None else {}
    deployment = read_deployment(
        config, dtype=dtype, max_draft_len=max_draft_len, draft_len_schedule=schedule
    )
    limit = max_tokens_of(deployment, max_tokens)
    acceptance = _acceptance(deployment, rule, threshold)
    with closing(load_pipeline(deployment)) as pipeline:
        tokenizer = pipeline.tokenizer
        changes = constraints(
            tokenizer,
            repetition=repetition_penalty,
            presence=presence_penalty,
            frequency=frequency_penalty,
            logit_bias=bias,
            bad_words=bad_words or (),
        )
        sampling = replace(sampling, min_p=min_p, constraints=changes, logprobs=logprobs)
        encode = partial(tokenizer.turn, instead=NO_CHAT) if chat else tokenizer.encode
        requests = [
            Request(
                prompt_ids=encode(text),
                max_tokens=limit,
                acceptance=acceptance,
                sampling=sampling,
                stop=tuple(stop or ()),
                end_id=end_id,
                stop_ids=(*(stop_token_ids or ()), *special_stops(tokenizer, stop or ())),
                min_tokens=min_tokens,
                ignore_end=ignore_eos,
            )
            for text in prompt
        ]
        began = time.perf_counter()
        results = pipeline.decoder.generate(requests)
        seconds = time.perf_counter() - began
    if as_json:
        answers = [_answer(text, result) for text, result in zip(prompt, results, strict=True)]
        print_json({"results": answers, "timing": _timing(pipeline, results, seconds)})
        return
    out = console.console()
    for text, result in zip(prompt, results, strict=True):
        if len(prompt) > 1:
            console.write(out, [(f"> {text}", "bold")])
        console.print_result(out, result, tokenizer)
        out.print()
    tokens = sum(len(result.token_ids) for result in results)
    out.print(console.speed_line(tokens, seconds, [result.record for result in results]))
    console.print_legend(out)


def _acceptance(deployment: Deployment, rule: str | None, threshold: float | None) -> Acceptance:
    if rule is not None and rule not in RULES:
        raise UserError(f"rule: unknown {rule!r}; known are {', '.join(RULES)}")
    if threshold is not None and not 0.0 <= threshold <= 1.0:
        raise UserError(f"threshold: {threshold} is not in [0, 1]")
    acceptance = deployment.default_acceptance(rule=rule, threshold=threshold)
    if threshold is not None and acceptance.rule != "judge":
        raise UserError(
            f"threshold: {threshold:g} is for rule judge and does nothing under {acceptance.rule}; "
            "say --rule judge, or leave it out"
        )
    return acceptance


def _sampling(temperature: float, top_k: int, top_p: float, seed: int) -> Sampling:
    if not 0.0 <= temperature <= 100.0:
        raise UserError(f"temperature: {temperature} is not in [0, 100]")
    if not 0.0 < top_p <= 1.0:
        raise UserError(f"top-p: {top_p} is not in (0, 1]")
    return Sampling(temperature, top_k, top_p, seed)


def _answer(prompt: str, result: Result) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "text": result.text,
        "token_ids": result.token_ids,
        "finish_reason": result.finish_reason,
        "provenance": result.provenance,
        "judge_scores": result.judge_scores,
        "speculative_decoding": result.record.to_dict(),
        **({"logprobs": [one._asdict() for one in result.logprobs]} if result.logprobs else {}),
    }


def _timing(pipeline: Pipeline, results: Sequence[Result], seconds: float) -> dict[str, Any]:
    """Wall time of the whole batch, with prefill but without loading, and its parts."""
    clock = pipeline.decoder.clock
    tokens = sum(len(result.token_ids) for result in results)
    return {
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_s": tokens / seconds,
        "rounds": clock.rounds,
        "propose_s": clock.propose,
        "verify_s": clock.verify,
        "host_s": clock.host,
        "judge_s": clock.judge,
    }
