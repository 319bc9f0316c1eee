"""`train-judge`: a judge from labels."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.commands.options import Json, print_json
from judge_decoding.config.paths import DEMO_TARGET, resolve
from judge_decoding.errors import UserError, check_choice
from judge_decoding.evaluation.systems import parse_numbers
from judge_decoding.training.judge.measures import without_nan
from judge_decoding.training.judge.report import measures_table
from judge_decoding.training.judge.threshold import chooser
from judge_decoding.training.judge.train import TrainingOptions, read_data, write_judge
from judge_decoding.training.judge.train import train_judge as train
from judge_decoding.training.labels import AFTER_ERROR


def train_judge(
    labels: Annotated[
        list[str] | None,
        typer.Option(
            help="JSONL file to train on. Repeatable.", show_default="cache:mined-facts.jsonl"
        ),
    ] = None,
    held_out_labels: Annotated[
        list[str] | None,
        typer.Option(help="JSONL file to report on, not to train on. Repeatable."),
    ] = None,
    target: Annotated[str, typer.Option(help="The target: a folder or a GGUF file.")] = DEMO_TARGET,
    out: Annotated[Path, typer.Option(help="Judge to write, with its card beside it.")] = Path(
        "models/smollm2-135m-judge.safetensors"
    ),
    docs: Annotated[
        Path, typer.Option(help="Folder for results/ and figures/ of the training.")
    ] = Path("docs"),
    cache: Annotated[str, typer.Option(help="Folder for hidden states.")] = "cache:",
    feature: Annotated[str, typer.Option(help="pre_norm, post_norm or best.")] = "best",
    after_error: Annotated[
        str | None,
        typer.Option(
            help="Tokens after an error: negative, ignore or error_only.",
            show_default="what the labels say",
        ),
    ] = None,
    train_on: Annotated[
        str, typer.Option(help="mismatch (tokens that the standard rule refuses) or all.")
    ] = "mismatch",
    class_weight: Annotated[str, typer.Option(help="balanced or none.")] = "balanced",
    threshold: Annotated[
        float | None, typer.Option(min=0, max=1, help="Fix the threshold at this value.")
    ] = None,
    bad_recall: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Choose the smallest threshold that refuses this share of the bad tokens.",
            show_default="0.95",
        ),
    ] = None,
    max_quality_drop: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Choose the smallest threshold of --try that costs at most this accuracy on "
            "--task: 0.01 is one point.",
        ),
    ] = None,
    deployment: Annotated[
        Path | None,
        typer.Option(help="--max-quality-drop: deployment file that answers the task."),
    ] = None,
    task: Annotated[
        str | None, typer.Option(help="--max-quality-drop: a task's name or JSONL file.")
    ] = None,
    tried: Annotated[
        str, typer.Option("--try", help="--max-quality-drop: thresholds to try.")
    ] = "0.5,0.6,0.7,0.8,0.9",
    batch: Annotated[
        int | None, typer.Option(min=1, help="--max-quality-drop: answers at a time.")
    ] = None,
    run_code: Annotated[
        bool, typer.Option(help="--max-quality-drop: let a task's tests run written code.")
    ] = False,
    dtype: Annotated[str, typer.Option(help="Of inference: auto, float32, bfloat16.")] = "auto",
    reader: Annotated[str, typer.Option(help="torch (CPU) or transformers (GPUs).")] = "torch",
    weights: Annotated[
        str | None,
        typer.Option(
            help="The deployment's target.weights, if not its dtype: float32, bfloat16, float16, "
            "int8, int4."
        ),
    ] = None,
    block: Annotated[int, typer.Option(min=1, help="Tokens that a verify pass reads.")] = 9,
    as_json: Json = False,
) -> None:
    """Train a judge on labels and choose its threshold.

    Writes the judge, its card, a report and figures.
    """
    options = TrainingOptions(
        feature=feature,
        after_error=check_choice("--after-error", after_error, AFTER_ERROR)
        if after_error is not None
        else None,
        train_on=train_on,
        class_weight=class_weight,
        dtype=dtype,
        reader=reader,
        weights=weights,
        block=block,
    )
    thresholds = parse_numbers(tried, "--try")
    for value in thresholds:
        if not 0 <= value <= 1:
            raise UserError(f"--try: {value:g} is not in [0, 1]")
    choose = chooser(
        threshold,
        bad_recall,
        max_quality_drop,
        deployment=deployment,
        task=task,
        tried=thresholds,
        batch=batch,
        run_code=run_code,
    )
    data = read_data(
        [resolve(path) for path in labels or ["cache:mined-facts.jsonl"]],
        [resolve(path) for path in held_out_labels or []],
        Checkpoint(resolve(target)),
        resolve(cache),
        options,
        _say,
    )
    trained = train(data, options, choose, _say)
    written = write_judge(trained, out, docs)
    document, choice = trained.document, trained.choice
    print(measures_table(document["validated"], document["auc_on_unseen_domain"]))
    print(f"threshold {choice.threshold:g}: {choice.method}")
    print("wrote " + "\n      ".join(map(str, written)))
    print(
        f"next: name the judge in a deployment of this target (judge: {{path: {out}}}), then "
        "compare it with the other rules: judge-decoding eval --config FILE --task TASK"
    )
    for warning in trained.warnings():
        _say(f"warning: {warning}")
    if as_json:
        print_json(without_nan(document))


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
