"""Checks and times the judge kernel on a CUDA GPU, without TensorRT.

    python -m plugins.judge_accept.bench_gpu            # all shapes; needs nvcc, or --library
    python -m plugins.judge_accept.bench_gpu --host     # only the check, on the kernel's CPU build

1. check        edited logits and scores against torch in float64, over every type
2. determinism  100 runs, bit for bit, eager and replayed from a CUDA graph
3. racecheck    a small check under compute-sanitizer, if it is installed
4. time         per launch, for the hidden sizes of Llama-3.1 8B, 70B and 405B, a vocabulary of
                128,256 (float32 logits, bfloat16 hidden states, as the engines are built), K drafts
                and a batch of verify requests

Times are medians over replays of one CUDA graph that walks through more buffers than the L2 cache
holds, because an engine's other layers also empty the cache. They are compared with
- copy: cudaMemcpyAsync of the same logits, the least that any plugin with its own output costs;
- torch: the same edit in torch operations, with the rows given.

Prints a table and, as its last line, one JSON document. Exit 1: a check failed. Exit 2: no GPU.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import torch
import typer

from judge_decoding import provenance
from judge_decoding.errors import UserError
from plugins.judge_accept import kernel
from plugins.judge_accept.acceptance_emulator import EngineRequest, pack
from plugins.judge_accept.reference import PluginSettings

VOCAB = 128256
HIDDEN = {"8B": 4096, "70B": 8192, "405B": 16384}
DRAFTS = (8, 25)
BATCHES = (1, 8, 32)
THRESHOLD = 0.5
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class KernelShape:
    """`batch` verify requests with `drafts` drafts each: R = batch * (drafts + 1)."""

    hidden_size: int
    columns: int
    drafts: int
    batch: int
    logits_type: str = "float32"
    hidden_type: str = "bfloat16"

    @property
    def rows(self) -> int:
        return self.batch * (self.drafts + 1)


class KernelCase:
    """One shape's inputs, outputs and workspace on a device, and the launch over them."""

    def __init__(
        self, library: ctypes.CDLL, shape: KernelShape, device: str, seed: int = 0
    ) -> None:
        self.library, self.shape = library, shape
        random = torch.Generator(device="cpu").manual_seed(seed)
        ids = torch.randint(shape.columns, (shape.batch, shape.drafts), generator=random).tolist()
        batch = pack([EngineRequest((1,), tuple(draft)) for draft in ids])
        self.batch = batch

        on_device = torch.Generator(device=device).manual_seed(seed)
        normal = {"device": device, "generator": on_device}
        self.logits = torch.randn(shape.rows, shape.columns, **normal)
        self.logits = self.logits.to(DTYPES[shape.logits_type])
        self.hidden = torch.randn(shape.rows, shape.hidden_size, **normal)
        self.hidden = self.hidden.to(DTYPES[shape.hidden_type])
        self.weight = torch.randn(shape.hidden_size, **normal) / shape.hidden_size**0.5
        indices = (batch.input_ids, batch.last_token_ids, batch.context_lengths)
        self.input_ids, self.last_token_ids, self.context_lengths = (
            torch.from_numpy(array).to(device) for array in indices
        )
        # Half of the drafts are the target's choice already, as in practice.
        self.draft = torch.tensor(ids, device=device)  # [batch, K]
        rows = torch.arange(shape.rows, device=device).reshape(shape.batch, shape.drafts + 1)
        self.draft_rows = rows[:, :-1].reshape(-1)
        aligned = self.draft_rows[::2]
        self.logits[aligned, self.draft.reshape(-1)[::2]] = 9.0

        self.edited = torch.empty_like(self.logits)
        self.scores = torch.empty(shape.batch, shape.drafts, device=device)
        self.settings = PluginSettings(
            self.weight.cpu().numpy(),
            0.0,
            THRESHOLD,
            shape.columns,
            boost=1e4,
            max_draft_len=shape.drafts,
        )
        sizes = (len(batch.input_ids), shape.rows, shape.batch, shape.columns, shape.hidden_size)
        a = kernel.arguments(self.settings, sizes, (shape.logits_type, shape.hidden_type))
        a.workspace_size = library.judge_accept_workspace_size(
            shape.rows, shape.columns, a.logits_type, 0
        )
        self.workspace = torch.empty(a.workspace_size // 8, dtype=torch.int64, device=device)
        tensors = "logits hidden input_ids last_token_ids context_lengths weight edited scores"
        for name in (*tensors.split(), "workspace"):
            setattr(a, name, getattr(self, name).data_ptr())
        self.arguments = a

    def launch(self) -> None:
        """Launch the kernel on torch's current stream."""
        cuda = self.logits.is_cuda
        stream = torch.cuda.current_stream().cuda_stream if cuda else None
        error = self.library.launch_judge_accept(ctypes.byref(self.arguments), stream)
        if error:
            raise RuntimeError(f"launch_judge_accept: CUDA error {error}")

    def torch_edit(self) -> None:
        """Make the same edit in torch, without a synchronisation; rows and drafts are given."""
        self.edited.copy_(self.logits)
        draft = self.draft.reshape(-1)
        score = torch.sigmoid(self.hidden[self.draft_rows + 1].float() @ self.weight)
        top, choice = self.logits[self.draft_rows].max(-1)
        accepted = (score > THRESHOLD) & (choice != draft)
        raised = top.clamp_min(0) + self.settings.boost
        kept = self.edited[self.draft_rows, draft]
        self.edited[self.draft_rows, draft] = torch.where(accepted, raised, kept)


def check(case: KernelCase) -> dict[str, Any]:
    """Compare one launch with float64. RuntimeError if it differs.

    A score within 1e-5 of the threshold may fall either way: such rows are counted, not compared.
    """
    case.edited.fill_(float("nan"))
    case.launch()
    rows, draft = case.draft_rows, case.draft.reshape(-1)
    scores = torch.sigmoid(case.hidden[rows + 1].double() @ case.weight.double())
    error = (case.scores.reshape(-1).double().abs() - scores).abs().max().item()
    if not error < 1e-5:
        raise RuntimeError(f"check: scores differ from float64 by {error:.3g} ({case.shape})")

    top, choice = case.logits[rows].max(-1)
    accepted = (scores > THRESHOLD) & (choice != draft)
    largest = torch.finfo(case.logits.dtype).max
    raised = (top.float().clamp_min(0) + case.settings.boost).clamp_max(largest)
    expected = case.logits.clone()
    kept = expected[rows, draft]
    expected[rows, draft] = torch.where(accepted, raised.to(expected.dtype), kept)
    unsure = rows[(scores - THRESHOLD).abs() < 1e-5]
    compared = torch.ones(case.shape.rows, dtype=torch.bool, device=rows.device)
    compared[unsure] = False
    if not torch.equal(case.edited[compared], expected[compared]):
        raise RuntimeError(f"check: edited logits differ ({case.shape})")
    return {
        **asdict(case.shape),
        "max_score_error": error,
        "edited_rows": int(accepted.sum()),
        "rows_not_compared": len(unsure),
    }


def checks(library: ctypes.CDLL, device: str, *, small: bool) -> list[dict[str, Any]]:
    """Check every type, with aligned and odd sizes."""
    sizes = ((40, 1003), (64, 512)) if small else ((4096, VOCAB), (4100, 128257), (77, 1003))
    return [
        check(
            KernelCase(
                library, KernelShape(hidden, columns, 4, 6, logits_type, hidden_type), device
            )
        )
        for hidden, columns in sizes
        for logits_type in ("float32", "float16")
        for hidden_type in DTYPES
    ]


def determinism(library: ctypes.CDLL, runs: int = 100) -> dict[str, Any]:
    """Raise RuntimeError unless every run and every graph replay gives the same bits."""
    case = KernelCase(library, KernelShape(8192, VOCAB, 8, 8), "cuda")
    case.launch()
    first = (case.edited.clone(), case.scores.clone())

    def same() -> bool:
        return torch.equal(case.edited, first[0]) and torch.equal(
            case.scores.view(torch.int32), first[1].view(torch.int32)
        )

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        case.launch()
    for name, run in (("eager", case.launch), ("graph", graph.replay)):
        for i in range(runs):
            case.edited.fill_(float("nan"))
            run()
            if not same():
                raise RuntimeError(f"determinism: {name} run {i} differs from the first")
    return {"runs": 2 * runs, "shape": asdict(case.shape), "bit_identical": True}


def racecheck(library: Path) -> dict[str, Any] | None:
    """Run the small check under compute-sanitizer; None if that is not installed."""
    if shutil.which("compute-sanitizer") is None:
        return None
    module = [sys.executable, "-m", "plugins.judge_accept.bench_gpu", "--only-small-check"]
    tools = {}
    for tool in ("racecheck", "memcheck"):
        sanitizer = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
        done = subprocess.run(
            [*sanitizer, *module, "--library", str(library)],
            cwd=kernel.HERE.parents[1],
            # Every tensor gets its own allocation, so that an access outside it is found.
            env={**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise RuntimeError(f"{tool}:\n{done.stdout}{done.stderr}")
        tools[tool] = "no errors"
    return tools


def seconds_a_launch(launches: list[Callable[[], None]], replays: int = 20) -> float:
    """Median time of one graph of all launches, divided by their number."""
    for launch in launches:
        launch()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for launch in launches:
            launch()
    times = []
    for _ in range(replays):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / len(launches))
    return median(times)


def timing(library: ctypes.CDLL, model: str, shape: KernelShape) -> dict[str, Any]:
    one = 2 * shape.rows * shape.columns * 4
    sets = max(4, min(64, -(-(512 << 20) // one)))  # 512 MB in all: ten times an H100's L2
    cases = [KernelCase(library, shape, "cuda", seed) for seed in range(sets)]
    own = seconds_a_launch([case.launch for case in cases])
    copy = seconds_a_launch([lambda case=case: case.edited.copy_(case.logits) for case in cases])
    naive = seconds_a_launch([case.torch_edit for case in cases])
    return {
        "model": model,
        **asdict(shape),
        "rows": shape.rows,
        "us": own * 1e6,
        "copy_us": copy * 1e6,
        "torch_us": naive * 1e6,
        "over_copy": own / copy,
        "copy_gb_s": one / copy / 1e9,
        "gb_s": one / own / 1e9,
    }


def gpu_facts() -> dict[str, Any]:
    facts: dict[str, Any] = {"cuda": torch.version.cuda}
    query = ["nvidia-smi", "--query-gpu=driver_version,clocks.max.mem", "--format=csv,noheader"]
    for name, command in (("nvidia_smi", query), ("nvcc", ["nvcc", "--version"])):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            facts[name] = done.stdout.strip().splitlines()[-1]
        except (OSError, subprocess.CalledProcessError, IndexError):
            facts[name] = None
    return facts


@contextmanager
def built(library: Path | None, *, host: bool) -> Iterator[Path]:
    """Yield the given library, or one built in a folder that is removed afterwards."""
    if library is not None:
        if not library.is_file():
            raise UserError(f"library: no file {library}")
        yield library
        return
    with tempfile.TemporaryDirectory(prefix="judge-accept-") as folder:
        try:
            if host:
                yield kernel.build_host(Path(folder))
            else:
                major, minor = torch.cuda.get_device_capability()
                yield kernel.build_cuda(Path(folder), f"{major}{minor}")
        except kernel.BuildError as error:
            raise UserError(f"build: {error}") from None


def require_gpu() -> None:
    if not torch.cuda.is_available():
        raise UserError(
            f"gpu: torch {torch.__version__} sees no CUDA GPU; run this where there is one, with a "
            "CUDA build of torch, or give --host for the check on the CPU"
        )


def print_table(times: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"us per launch, V = {VOCAB}, float32 logits, bfloat16 hidden states")
    for name in ("target", "batch", "K", "R", "judge", "copy", "judge / copy", "torch", "GB/s"):
        table.add_column(name, justify="left" if name == "target" else "right")
    for t in times:
        table.add_row(
            t["model"],
            *(str(t[name]) for name in ("batch", "drafts", "rows")),
            f"{t['us']:.1f}",
            f"{t['copy_us']:.1f}",
            f"{t['over_copy']:.2f}",
            f"{t['torch_us']:.1f}",
            f"{t['gb_s']:.0f}",
        )
    Console().print(table)


def main(
    library: Annotated[
        Path | None, typer.Option(help="a built plugin library; without it nvcc builds one")
    ] = None,
    host: Annotated[bool, typer.Option("--host", help="check the CPU build, no GPU")] = False,
    only_small_check: Annotated[
        bool, typer.Option("--only-small-check", help="what the sanitizer runs")
    ] = False,
    output: Annotated[Path | None, typer.Option(help="also write the JSON here")] = None,
) -> None:
    """Check the judge kernel on this machine's GPU and time it."""
    if not host:
        require_gpu()
    with built(library, host=host) as path:
        loaded = kernel.load(path)
        report: dict[str, Any] = {"benchmark": "judge_accept kernel", "backend": "host"}
        if host or only_small_check:
            report["checks"] = checks(loaded, "cpu" if host else "cuda", small=True)
            print(f"{len(report['checks'])} checks passed")
        else:
            report |= {"backend": "cuda", "checks": checks(loaded, "cuda", small=False)}
            report["determinism"] = determinism(loaded)
            report["racecheck"] = racecheck(path)
            report["times"] = [
                timing(loaded, model, KernelShape(size, VOCAB, drafts, batch))
                for model, size in HIDDEN.items()
                for drafts in DRAFTS
                for batch in BATCHES
            ]
            print_table(report["times"])
            report["gpu"] = gpu_facts()
        report["provenance"] = provenance.collect()
    document = json.dumps(report)
    if output is not None:
        output.write_text(document + "\n", encoding="utf-8")
    print(document)


app = typer.Typer(add_completion=False)
app.command()(main)


def run() -> None:
    try:
        app()
    except (UserError, kernel.BuildError) as error:
        print(f"bench_gpu: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        print(f"bench_gpu: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    run()
