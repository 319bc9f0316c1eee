"""`judge-decoding bench`: the speed of rules, and of other programs, in one interleaved run."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Annotated

import typer

from judge_decoding.commands.options import (
    DEMO,
    Config,
    Dtype,
    Json,
    MaxTokens,
    max_tokens_of,
    names_of,
    print_json,
    read_deployment,
)
from judge_decoding.decoding.contracts import RULES
from judge_decoding.errors import UserError
from judge_decoding.progress import progress


def bench(
    config: Config = DEMO,
    prompts: Annotated[
        Path | None, typer.Option(help='Lines of {"prompt": text}; 48 chat prompts by default.')
    ] = None,
    rules: Annotated[
        str, typer.Option(help="Acceptance rules, comma-separated.")
    ] = "none,strict,judge",
    peers: Annotated[
        str,
        typer.Option(
            help="Other programs beside them, comma-separated: hf, hf-assisted, llamacpp, "
            "llamacpp-draft, openvino, openvino-draft."
        ),
    ] = "",
    tune: Annotated[
        bool, typer.Option("--tune", help="Also `strict` at its own best draft length.")
    ] = False,
    dtype: Dtype = None,
    max_tokens: MaxTokens = None,
    as_json: Json = False,
) -> None:
    """Compare rules, and other programs, in one interleaved run."""
    from judge_decoding.commands import console
    from judge_decoding.evaluation import bench as benchmark
    from judge_decoding.evaluation.peers.open_peers import PEERS
    from judge_decoding.evaluation.prompts import read_prompts
    from judge_decoding.pipeline import load_pipeline

    wanted = names_of(rules, RULES, "rules")
    rivals = names_of(peers, PEERS, "peers")
    if not wanted:
        raise UserError(f"rules: name at least one of {', '.join(RULES)}")
    texts = read_prompts(prompts)
    deployment = read_deployment(config, dtype=dtype)
    limit = max_tokens_of(deployment, max_tokens)
    with closing(load_pipeline(deployment)) as pipeline, progress("answers") as step:
        report = benchmark.run(
            pipeline,
            texts,
            rules=wanted,
            peers=rivals,
            tune=tune,
            max_tokens=limit,
            progress=step,
        )
    console.print_report(console.console(), report)
    if as_json:
        print_json(report)
