"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

DEFAULT_URL = "127.0.0.1:8001"

Url = Annotated[str, typer.Option("-u", "--url", help="HOST:PORT of the server's gRPC endpoint.")]
Model = Annotated[str, typer.Option(help="The server's model.")]
Timeout = Annotated[float | None, typer.Option(min=0.001, help="Seconds that an answer may take.")]
Rule = Annotated[str | None, typer.Option(help="Acceptance rule.")]
Threshold = Annotated[float | None, typer.Option(help="The judge's threshold, in [0, 1].")]
MaxTokens = Annotated[int | None, typer.Option(help="Largest number of new tokens.")]
MaxDraftLen = Annotated[int | None, typer.Option(help="Drafted tokens per round.")]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy.")]
TopK = Annotated[int | None, typer.Option(help="0 is off.")]
TopP = Annotated[float | None, typer.Option(help="1 is off.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the sampling.")]
Json = Annotated[bool, typer.Option("--json", help="End with one JSON document on one line.")]
