"""`judge-decoding serve`: Triton in front of the deployment, and its ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from judge_decoding.commands.options import DEMO, Config, read_deployment

Port = Annotated[int | None, typer.Option(min=1, max=65535, help="Instead of the file's.")]
HttpPort = Annotated[str | None, typer.Option(help="Instead of the file's; `off` for none.")]


def serve(
    config: Config = DEMO,
    http_port: HttpPort = None,
    openai_port: HttpPort = None,
    grpc_port: Port = None,
    metrics_port: Port = None,
    dry_run: Annotated[bool, typer.Option(help="Print the command, start nothing.")] = False,
    ready_file: Annotated[
        Path | None,
        typer.Option(help="Written (JSON) when the server has answered a warm-up request."),
    ] = None,
) -> None:
    """Serve the deployment with Triton, across its MPI ranks. SIGTERM drains and stops."""
    from judge_decoding.config import deployment_file
    from judge_decoding.serving.launcher import serve as launch

    deployment = read_deployment(config)
    ports = {
        "http_port": http_port,
        "openai_port": openai_port,
        "grpc_port": grpc_port,
        "metrics_port": metrics_port,
    }
    chosen = {name: port for name, port in ports.items() if port is not None}
    deployment = deployment.override(server=deployment.server.model_dump() | chosen)
    file = deployment_file(config)
    raise typer.Exit(launch(deployment, file, dry_run=dry_run, ready_file=ready_file))
