"""The `judge-decoding` command: generate, chat, bench, serve, plan, eval, audit.

A user's mistake, whoever finds it, is one line on stderr and exit code 2. With `--json` the last
line of stdout is one JSON document.
"""

from __future__ import annotations

import io
import json
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from judge_decoding.commands.eval import audit, evaluate
from judge_decoding.commands.plan import plan
from judge_decoding.decoding.contracts import RULES, Acceptance, Sampling
from judge_decoding.errors import UserError
from judge_decoding.text import check_unicode

if TYPE_CHECKING:
    from judge_decoding.config import Deployment
    from judge_decoding.decoding.loop import Result
    from judge_decoding.pipeline import Pipeline
    from judge_decoding.text import Tokenizer


class OneLineErrors(TyperGroup):
    """Commands whose complaints are one line, not a box and not a traceback."""

    def main(self, *args: Any, **extra: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # text that the terminal cannot show
                stream.reconfigure(errors="replace")
        if isinstance(sys.stdin, io.TextIOWrapper):  # as arguments are: `check_unicode` finds it
            sys.stdin.reconfigure(errors="surrogateescape")
        try:
            code = super().main(*args, **(extra | {"standalone_mode": False}))
        except UserError as error:
            _fail(str(error))
        except (typer.Abort, KeyboardInterrupt):
            sys.exit(130)
        except Exception as error:
            # Typer's own complaints; their base class has moved between its versions.
            if not hasattr(error, "format_message"):
                raise
            _fail(error.format_message())
        sys.exit(code if isinstance(code, int) else 0)


def _fail(message: str) -> NoReturn:
    print(f"judge-decoding: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


app = typer.Typer(
    cls=OneLineErrors,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Speculative decoding with a learned judge. Lossy by design: see --rule strict.",
)

DEMO = Path("demo")
"""The default deployment: the demo pair of a source checkout."""

Config = Annotated[Path, typer.Option(help="Deployment file.", show_default="configs/demo.yaml")]
Dtype = Annotated[str | None, typer.Option(help="Instead of the file's: auto, float32, bfloat16.")]
MaxTokens = Annotated[
    int | None,
    typer.Option(min=1, show_default="128, or the deployment's limit", help="New tokens at most."),
]
Json = Annotated[bool, typer.Option("--json", help="End with one JSON document on one line.")]


@app.callback(invoke_without_command=True)
def _root(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def generate(
    prompt: Annotated[list[str], typer.Option(help="May be repeated: one batch.")],
    config: Config = DEMO,
    max_tokens: MaxTokens = None,
    rule: Annotated[str | None, typer.Option(help=", ".join(RULES))] = None,
    threshold: Annotated[float | None, typer.Option(help="The judge's, in [0, 1].")] = None,
    max_draft_len: Annotated[int | None, typer.Option(help="Drafted tokens a round.")] = None,
    dtype: Dtype = None,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(min=0, help="0 is off.")] = 0,
    top_p: Annotated[float, typer.Option(help="1 is off.")] = 1.0,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1)] = 0,
    stop: Annotated[list[str] | None, typer.Option(help="May be repeated.")] = None,
    chat: Annotated[bool, typer.Option(help="Put the prompt in the chat template.")] = True,
    as_json: Json = False,
) -> None:
    """Answer prompts and show where every token comes from."""
    from judge_decoding.commands import console
    from judge_decoding.decoding.sequence import Request

    sampling = _sampling(temperature, top_k, top_p, seed)
    for text in stop or ():
        if not text:
            raise UserError("stop: a stop string must not be empty")
        check_unicode("stop", text)
    for text in prompt:
        check_unicode("prompt", text)
    # The schedule would shorten what was asked for by name.
    schedule: dict[int, int] | None = None if max_draft_len is None else {}
    deployment = _deployment(
        config, dtype=dtype, max_draft_len=max_draft_len, draft_len_schedule=schedule
    )
    limit = _max_tokens(deployment, max_tokens)
    acceptance = _acceptance(deployment, rule, threshold)
    with closing(_load(deployment)) as pipeline:
        tokenizer = pipeline.tokenizer
        requests = [
            Request(
                prompt_ids=_turns(tokenizer, text) if chat else tokenizer.encode(text),
                max_tokens=limit,
                acceptance=acceptance,
                sampling=sampling,
                stop=tuple(stop or ()),
            )
            for text in prompt
        ]
        began = time.perf_counter()
        results = pipeline.decoder.generate(requests)
        seconds = time.perf_counter() - began
    if as_json:
        answers = [_answer(text, result) for text, result in zip(prompt, results, strict=True)]
        _print_json({"results": answers, "timing": _timing(pipeline, results, seconds)})
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


@app.command()
def chat(config: Config = DEMO) -> None:
    """Talk to the target. /new forgets the conversation, /quit or Ctrl-D ends it."""
    from judge_decoding.commands import console

    with closing(_load(_deployment(config))) as pipeline:
        console.converse(pipeline)


@app.command()
def bench(
    config: Config = DEMO,
    prompts: Annotated[
        Path | None, typer.Option(help='Lines of {"prompt": text}; 48 chat prompts by default.')
    ] = None,
    rules: Annotated[str, typer.Option(help="Comma-separated.")] = "none,strict,judge",
    peers: Annotated[str, typer.Option(help="Comma-separated: hf, hf-assisted.")] = "",
    dtype: Dtype = None,
    max_tokens: MaxTokens = None,
    as_json: Json = False,
) -> None:
    """Compare rules, and transformers, in one interleaved run."""
    from judge_decoding.benchmark import bench as benchmark
    from judge_decoding.commands import console

    wanted = _names(rules, RULES, "rules")
    rivals = _names(peers, benchmark.PEERS, "peers")
    if not wanted:
        raise UserError(f"rules: name at least one of {', '.join(RULES)}")
    texts = read_prompts(prompts)
    deployment = _deployment(config, dtype=dtype)
    limit = _max_tokens(deployment, max_tokens)
    with closing(_load(deployment)) as pipeline, console.progress("answers") as progress:
        report = benchmark.run(
            pipeline, texts, rules=wanted, peers=rivals, max_tokens=limit, progress=progress
        )
    console.print_report(console.console(), report)
    if as_json:
        _print_json(report)


Port = Annotated[int | None, typer.Option(min=1, max=65535, help="Instead of the file's.")]


@app.command()
def serve(
    config: Config = DEMO,
    http_port: Port = None,
    grpc_port: Port = None,
    metrics_port: Port = None,
    dry_run: Annotated[bool, typer.Option(help="Print the command and do nothing.")] = False,
    ready_file: Annotated[
        Path | None, typer.Option(help="Written (JSON) once a warm-up request was answered.")
    ] = None,
) -> None:
    """Serve the deployment with Triton, across its MPI ranks. SIGTERM drains and stops."""
    from judge_decoding.config import deployment_file
    from judge_decoding.serving.launcher import serve as launch

    deployment = _deployment(config)
    ports = {"http_port": http_port, "grpc_port": grpc_port, "metrics_port": metrics_port}
    chosen = {name: port for name, port in ports.items() if port is not None}
    deployment = _deployment(config, server=deployment.server.model_dump() | chosen)
    code = launch(deployment, deployment_file(config), dry_run=dry_run, ready_file=ready_file)
    raise typer.Exit(code)


app.command()(plan)
app.command("eval")(evaluate)
app.command()(audit)


def read_prompts(path: Path | None) -> list[str]:
    """The prompts of a .jsonl file of {"prompt": text}; None for those of the package."""
    where = path or resources.files("judge_decoding") / "data" / "chat_prompts.jsonl"
    try:
        lines = where.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompts: cannot read {path} ({error})") from None
    prompts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"prompts: {path} line {number} is not JSON ({error})") from None
        text = row.get("prompt") if isinstance(row, dict) else None
        if not isinstance(text, str) or not text.strip():
            raise UserError(f'prompts: {path} line {number} must be {{"prompt": "text"}}')
        prompts.append(text)
    if not prompts:
        raise UserError(f"prompts: {path} holds none")
    return prompts


def _deployment(config: Path, **overrides: Any) -> Deployment:
    """The file with the command line's changes; None leaves a field as it is."""
    from judge_decoding.config import load_deployment

    return load_deployment(config).override(**overrides)


def _max_tokens(deployment: Deployment, wanted: int | None) -> int:
    limit = deployment.limits.max_tokens
    if wanted is not None and wanted > limit:
        raise UserError(f"max-tokens: {wanted} is more than limits.max_tokens {limit}")
    return min(128, limit) if wanted is None else wanted


def _load(deployment: Deployment) -> Pipeline:
    from judge_decoding.pipeline import load_pipeline

    return load_pipeline(deployment)


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


def _turns(tokenizer: Tokenizer, text: str) -> list[int]:
    return tokenizer.chat([{"role": "user", "content": text}])


def _answer(prompt: str, result: Result) -> dict[str, Any]:
    return {
        "prompt": prompt,
        "text": result.text,
        "token_ids": result.token_ids,
        "finish_reason": result.finish_reason,
        "provenance": result.provenance,
        "judge_scores": result.judge_scores,
        "speculative_decoding": result.record.to_dict(),
    }


def _timing(pipeline: Pipeline, results: Sequence[Result], seconds: float) -> dict[str, Any]:
    """Wall time of the whole batch, prefill included, loading not; and where it went."""
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


def _print_json(document: dict[str, Any]) -> None:
    print(json.dumps(document, allow_nan=False), flush=True)


def _names(text: str, known: Sequence[str], what: str) -> list[str]:
    """A comma-separated option -> names, each once."""
    names = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    for name in names:
        if name not in known:
            raise UserError(f"{what}: unknown {name!r}; known are {', '.join(known)}")
    return names


def main() -> None:
    """The console command."""
    app()
