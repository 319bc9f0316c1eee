"""Makes `answers.json`: the answers to the requests of `asked.py`.

    python -m tests.golden.make

The file was made with the code of commit 9a2b22c, but for the answer with `min_tokens` of rule
`judge`, which has masked end tokens since. Make it again only if answers change on purpose.
Nothing is written unless all answers are independent of the machine: another CPU, number of
threads or batch sums products of matrices in another order. Therefore all requests are answered in
several variants (`VARIANTS`), one by one and eight at a time:

- with one thread and with two;
- without AVX: PyTorch, oneDNN and MKL use their kernels for the oldest CPUs;
- with every weight of both models multiplied by 1 + 1e-5 x, x standard normal, with two seeds.
  float32 itself rounds by 6e-8, which is less.

Every field must be the same in all variants, scores within a tolerance. Requests that fail this
are named; remove them from `asked.py`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from judge_decoding import provenance
from judge_decoding.config import Deployment
from judge_decoding.decoding.judge import Judge
from judge_decoding.pipeline import load_pipeline
from tests.conftest import write_judge
from tests.golden import replay
from tests.golden.asked import groups
from tests.golden.replay import AT_ONCE, deployment_of, differences, in_process

NOISE = 1e-5
THREADS, OLDEST = "OMP_NUM_THREADS", {"ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_CBWR": "COMPATIBLE"}
VARIANTS: dict[str, tuple[dict[str, str], int]] = {
    "one thread": ({THREADS: "1"}, 0),
    "two threads": ({THREADS: "2", "OMP_WAIT_POLICY": "passive"}, 0),
    "no AVX": ({THREADS: "1", "ATEN_CPU_CAPABILITY": "default"} | OLDEST, 0),
    "noise 1": ({THREADS: "1"}, 1),
    "noise 2": ({THREADS: "1"}, 2),
}
"""Name -> (environment, seed of the weights' noise); seed 0 leaves the weights unchanged."""


def main() -> None:
    with ThreadPoolExecutor() as pool:
        found = pool.map(_in_a_process, VARIANTS.values())
        answers = dict(zip(VARIANTS, found, strict=True))
    # Answers of the first variant, by the group's first way; all others must be the same.
    expected = {name: next(iter(ways.values())) for name, ways in answers["one thread"].items()}
    changing = [
        f"{variant}, {name}, {way}, number {number}: {', '.join(fields)}"
        for variant, found in answers.items()
        for name, ways in found.items()
        for way, ours in ways.items()
        for number, answer in enumerate(ours)
        if (fields := differences(answer, expected[name][number]))
    ]
    if changing:
        sys.exit("\n".join(["These answers differ:", *changing]))
    for group in (made := groups()):
        pipeline = load_pipeline(deployment_of(group))
        group["requests"] = [
            {"request": asked, "prompt_ids": replay.prompt_ids(pipeline, asked), "answer": answer}
            for asked, answer in zip(group["requests"], expected[group["name"]], strict=True)
        ]
    replay.ANSWERS.write_text(_document(made), encoding="utf-8")
    print(f"{replay.ANSWERS}: {sum(len(group['requests']) for group in made)} requests")


def _in_a_process(variant: tuple[dict[str, str], int]) -> Any:
    env, seed = os.environ | variant[0], variant[1]
    command = [sys.executable, "-m", "tests.golden.make", str(seed)]
    return json.loads(subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True).stdout)


def one_variant(seed: int) -> dict[str, dict[str, list[Any]]]:
    """This process's answers: group -> way -> answers. (The test asks the server.)"""
    found: dict[str, dict[str, list[Any]]] = {}
    for group in groups():
        with _noisy(deployment_of(group), seed) as deployment:
            found[group["name"]] = {
                way: in_process(deployment, group["requests"], 1 if way == "alone" else AT_ONCE)
                for way in group["ways"]
                if way != "served"
            }
    return found


@contextmanager
def _noisy(deployment: Deployment, seed: int) -> Iterator[Deployment]:
    """The deployment with noise on its weights and a fitting judge; seed 0 leaves it unchanged."""
    if not seed:
        yield deployment
        return
    assert deployment.draft is not None and deployment.judge is not None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generator = torch.Generator().manual_seed(seed)
        for role, source in (("target", deployment.target), ("draft", deployment.draft)):
            shutil.copytree(source.model, folder / role)
            file = folder / role / "model.safetensors"
            tensors = load_file(file)
            for key, tensor in tensors.items():
                if tensor.is_floating_point():
                    noise = 1 + NOISE * torch.randn(tensor.shape, generator=generator)
                    tensors[key] = tensor.float() * noise
            save_file(tensors, file, metadata={"format": "pt"})
        judge = Judge.load(deployment.judge.path)
        made = Judge.load(write_judge(folder / "judge.safetensors", folder / "target"))
        fitting = {"target_fingerprint": made.metadata.target_fingerprint}
        metadata = judge.metadata.model_copy(update=fitting)
        replace(judge, metadata=metadata).save(folder / "judge.safetensors")
        yield deployment.override(
            target={"model": str(folder / "target")},
            draft={"model": str(folder / "draft")},
            judge=deployment.judge.model_dump() | {"path": str(folder / "judge.safetensors")},
        )


def _document(made: list[dict[str, Any]]) -> str:
    """JSON with one request per line."""
    parts = []
    for group in made:
        head = json.dumps({k: v for k, v in group.items() if k != "requests"})[:-1]
        lines = ",\n".join(json.dumps(request) for request in group["requests"])
        parts.append(f'{head}, "requests": [\n{lines}\n]}}')
    return f'{{"made": {json.dumps(provenance.collect())},\n"groups": [\n{",".join(parts)}\n]}}\n'


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(one_variant(int(sys.argv[1]))))
    else:
        main()
