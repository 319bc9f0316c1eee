"""A deployment: one YAML file that everything reads and nothing else configures.

Paths are relative to the YAML file; `~` is the home folder, and `cache:NAME` is NAME in the
project's cache folder ($JUDGE_DECODING_CACHE, else ~/.cache/judge-decoding).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from judge_decoding.cpu import fast_dtype
from judge_decoding.engine.base import Acceptance, RuleName
from judge_decoding.errors import UserError


def cache_folder() -> Path:
    """Where prepared models are kept between runs."""
    path = os.environ.get("JUDGE_DECODING_CACHE") or "~/.cache/judge-decoding"
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UserError(
            f"cache: {path} has no home folder; set JUDGE_DECODING_CACHE to a full path"
        ) from None


def _resolve(value: Any, info: ValidationInfo) -> Any:
    if not isinstance(value, str) or not value:
        return value
    if value.startswith("cache:"):
        return cache_folder() / value.removeprefix("cache:")
    folder = (info.context or {}).get("folder", Path())
    try:
        return (folder / Path(value).expanduser()).resolve()
    except RuntimeError:
        raise ValueError(f"no home folder for {value.split('/')[0]}; give a full path") from None


ModelPath = Annotated[Path, BeforeValidator(_resolve)]


def _dtype(value: Any, info: ValidationInfo) -> Any:
    if value != "auto":
        return value
    if info.data.get("engine") == "trtllm":
        return "bfloat16"
    return fast_dtype()


Dtype = Annotated[Literal["float32", "bfloat16"], BeforeValidator(_dtype)]
"""`auto` is bfloat16, but float32 on a CPU that is faster with it (`cpu.fast_dtype`)."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelConfig(_Strict):
    """A Hugging Face Llama folder."""

    model: ModelPath
    shape: str | None = None
    """A known shape (`llama-3.1-70b`), for planning where the folder is not at hand."""


class JudgeConfig(_Strict):
    """A judge file; `threshold` overrides the one it was shipped with."""

    path: ModelPath
    threshold: float | None = Field(default=None, ge=0, le=1)


class AcceptanceConfig(_Strict):
    """The default rule and every rule's parameters; see `judge_decoding.acceptance`."""

    rule: RuleName = "strict"  # a lossy rule is opted into
    top_k: int = Field(default=3, ge=1, le=1000)
    typical_epsilon: float = Field(default=0.09, gt=0, le=1)
    typical_delta: float = Field(default=0.3, gt=0, le=1)
    kl_tau: float = Field(default=0.3, gt=0)
    kl_confident: float = Field(default=0.9, gt=0, le=1)
    fly_entropy: float = Field(default=0.3, ge=0)
    fly_window: int = Field(default=6, ge=1, le=64)
    synthetic_length: float = Field(default=4.0, ge=1, le=128)
    protect_end_ids: bool = True


class Limits(_Strict):
    """Bounds that memory is allocated for (`max_sequences` x `max_context`), and per request."""

    max_sequences: int = Field(default=4, ge=1, le=1024)
    max_context: int = Field(default=2048, ge=16, le=1_048_576)
    max_tokens: int = Field(default=1024, ge=1)
    prefill_chunk: int = Field(default=256, ge=1, le=65536)


class RankGroup(_Strict):
    """The ranks of one model: `tp` of them, tensor-parallel.

    devices  one a rank: `cpu` or a GPU number; none given: all on the CPU
    threads  CPU threads a rank; 0 shares PyTorch's default among the group
    """

    tp: int = Field(default=1, ge=1, le=64)
    devices: list[Literal["cpu"] | Annotated[int, Field(ge=0)]] = Field(default_factory=list)
    threads: int = Field(default=0, ge=0, le=1024)

    @model_validator(mode="after")
    def _a_device_a_rank(self) -> RankGroup:
        if self.devices and len(self.devices) != self.tp:
            raise ValueError(f"devices names {len(self.devices)}, but tp is {self.tp}: one a rank")
        return self


class RanksConfig(_Strict):
    """MPI ranks: rank 0 leads, then the draft's, then the target's (docs/ranks.md).

    colocate_draft     the draft has no ranks of its own: the target's first rank holds it, whole
    timeout_s          any one answer of a rank; past it the whole job ends
    startup_timeout_s  loading included
    """

    draft: RankGroup = RankGroup()
    target: RankGroup = RankGroup()
    colocate_draft: bool = False
    timeout_s: float = Field(default=60.0, gt=0)
    startup_timeout_s: float = Field(default=900.0, gt=0)

    @model_validator(mode="after")
    def _one_place_for_the_draft(self) -> RanksConfig:
        if self.colocate_draft and self.draft != RankGroup():
            raise ValueError(
                "colocate_draft puts the draft on the target's first rank, but `draft` describes "
                "ranks of its own; leave one of the two out"
            )
        return self


class TlsConfig(_Strict):
    """TLS of the gRPC endpoint; Triton's HTTP has none and then listens on loopback alone.

    certificate  PEM, with the chain below its root
    key          PEM
    ca           PEM of the root, by which the server's own warm-up checks the certificate
    name         one that the certificate holds: the warm-up connects by address
    """

    certificate: ModelPath
    key: ModelPath
    ca: ModelPath
    name: str = "localhost"


class ServerConfig(_Strict):
    """Triton's ports and the bounds of what it takes in.

    max_queue          requests that wait while all sequences are in use; one more is refused
    max_prompt_bytes   of a request's text
    deadline_ms        of every request, waiting included; one may ask for less, not for more
    stream_interval    rounds between two responses of a stream, after the first (TensorRT-LLM's
                       name); a response costs the same however many tokens it holds
    metrics            publish the loop's own metrics beside Triton's
    drain_s            time that running requests get after SIGTERM
    startup_timeout_s  until the warm-up request is answered, loading included
    token_file         its first line is a token that every request must bring (docs/operations/)
    """

    host: str = "127.0.0.1"
    http_port: int = Field(default=8000, ge=1, le=65535)
    grpc_port: int = Field(default=8001, ge=1, le=65535)
    metrics_port: int = Field(default=8002, ge=1, le=65535)
    max_queue: int = Field(default=64, ge=0)
    max_prompt_bytes: int = Field(default=1_000_000, ge=1)
    deadline_ms: int | None = Field(default=None, ge=1)
    stream_interval: int = Field(default=1, ge=1, le=1024)
    metrics: bool = True
    drain_s: float = Field(default=30.0, ge=0)
    startup_timeout_s: float = Field(default=900.0, gt=0)
    tls: TlsConfig | None = None
    token_file: ModelPath | None = None


class AuditConfig(_Strict):
    """The log of finished requests that `judge-decoding audit` decodes again (docs/evaluation.md).

    log     JSON lines; the folder must be there
    share   of the requests that are written down
    max_mb  of the log, the older half included
    """

    log: ModelPath
    share: float = Field(default=0.05, gt=0, le=1)
    max_mb: float = Field(default=64.0, ge=0.001, le=1e6)


class EngineConfig(_Strict):
    """How one model's TensorRT engine is built and what its cache gets.

    quantization        of weights and activations; `none` is the deployment's dtype
    kv_cache_dtype      `auto` is the deployment's dtype
    kv_cache_free_gpu_memory_fraction
                        of what is free on the GPU once the weights are loaded; the draft's engine
                        is loaded first
    """

    quantization: Literal["none", "fp8"] = "none"
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    kv_cache_free_gpu_memory_fraction: float = Field(default=0.9, gt=0, lt=1)

    @model_validator(mode="after")
    def _fp8_cache_is_calibrated(self) -> EngineConfig:
        if self.kv_cache_dtype == "fp8" and self.quantization == "none":
            raise ValueError(
                "kv_cache_dtype fp8 needs quantization fp8: its scales come from the same "
                "calibration"
            )
        return self


class TrtLlmConfig(_Strict):
    """What building and running TensorRT-LLM engines needs beside the models and `ranks`.

    engines         folder of all that is built: checkpoints/, draft/, target/, logs/
    gpu             the kind that engines are built on and run on
    shared_gpus     draft and target use the same GPUs (their `ranks.*.devices` are then equal
                    or overlap); else their GPUs must be disjoint
    gpus_per_node   GPU numbers count through the nodes: with 8, GPU 9 is the second node's GPU 1
    max_num_tokens  packed tokens of one pass; bounds activation memory. Every round counts the
                    whole texts of its sequences against it, cached or not: where they exceed it,
                    a round takes several passes (`judge-decoding plan` says how many)
    mode            `orchestrator`: one process spawns the ranks of both models (one node only);
                    `leader`: mpirun starts every rank
    fast_logits     draft distributions go GPU to GPU; they are used by rule `rejection` alone,
                    and need mode `orchestrator` with ranks that mpirun has started
    plugin          the judge's plugin library (plugins/judge_accept); loaded before any engine
    """

    engines: ModelPath
    gpu: Literal["h100", "h200", "b200"]
    draft: EngineConfig = EngineConfig()
    target: EngineConfig = EngineConfig()
    shared_gpus: bool = False
    gpus_per_node: int = Field(default=8, ge=1, le=64)
    logits_dtype: Literal["float32", "float16"] = "float32"
    max_num_tokens: int = Field(default=8192, ge=64)
    mode: Literal["orchestrator", "leader"] = "orchestrator"
    fast_logits: bool = False
    plugin: ModelPath = Path("/opt/judge-decoding/lib/libjudge_accept_plugin.so")


TRTLLM_RULES: tuple[RuleName, ...] = ("none", "strict", "rejection", "judge")
"""Rules that TensorRT-LLM's runtime has, or that the plugin adds to it."""


def scheduled(schedule: Mapping[int, int], active: int, longest: int) -> int:
    """At most `longest` tokens, by a schedule {active sequences up to: draft length}.

    The smallest key that `active` does not exceed counts, above all of them it is 0; an empty
    schedule leaves `longest`.
    """
    if not schedule:
        return longest
    limits = [limit for limit in schedule if active <= limit]
    return min(longest, schedule[min(limits)]) if limits else 0


class Deployment(_Strict):
    """The whole of a deployment."""

    name: str = Field(min_length=1)
    engine: Literal["torch", "trtllm"] = "torch"
    dtype: Dtype = "bfloat16"
    target: ModelConfig
    draft: ModelConfig | None = None
    judge: JudgeConfig | None = None
    acceptance: AcceptanceConfig = AcceptanceConfig()
    max_draft_len: int = Field(default=8, ge=0, le=128)
    draft_len_schedule: dict[int, int] = Field(default_factory=dict)
    draft_min_prob: float = Field(default=0.0, ge=0, lt=1)
    limits: Limits = Limits()
    ranks: RanksConfig | None = None
    """None: one process runs both models."""
    server: ServerConfig = ServerConfig()
    audit: AuditConfig | None = None
    trtllm: TrtLlmConfig | None = None
    """Read by engine `trtllm` alone, which needs it."""

    @model_validator(mode="after")
    def _consistent(self) -> Deployment:
        for active, length in self.draft_len_schedule.items():
            if active < 1 or not 0 <= length <= self.max_draft_len:
                raise ValueError(
                    f"draft_len_schedule {active}: {length} must map at least 1 active sequence "
                    f"to a draft length in 0..{self.max_draft_len} (max_draft_len)"
                )
        if self.acceptance.rule != "none" and self.draft is None:
            raise ValueError(f"acceptance.rule {self.acceptance.rule} needs a draft")
        if self.acceptance.rule == "judge" and self.judge is None:
            raise ValueError("acceptance.rule judge needs a judge")
        if self.ranks is not None and self.ranks.colocate_draft and self.draft is None:
            raise ValueError("ranks.colocate_draft needs a draft")
        if self.engine == "trtllm":
            self._check_trtllm()
        return self

    def _check_trtllm(self) -> None:
        """ValueError where TensorRT-LLM cannot run the deployment."""
        build, ranks = self.trtllm, self.ranks
        if build is None:
            raise ValueError("engine trtllm needs a trtllm section")
        if ranks is None:
            raise ValueError("engine trtllm needs ranks: tp and devices of draft and target")
        if self.draft is None:
            raise ValueError("engine trtllm needs a draft")
        if ranks.colocate_draft:
            raise ValueError(
                "engine trtllm has no ranks.colocate_draft: an executor holds one model; give both "
                "models the same ranks.*.devices and say trtllm.shared_gpus: true"
            )
        if self.dtype != "bfloat16":
            raise ValueError(f"engine trtllm runs dtype bfloat16, not {self.dtype}")
        if self.max_draft_len < 1:
            raise ValueError("engine trtllm needs max_draft_len of at least 1")
        if self.acceptance.rule not in TRTLLM_RULES:
            raise ValueError(
                f"engine trtllm has no acceptance.rule {self.acceptance.rule}; "
                f"it has {', '.join(TRTLLM_RULES)}"
            )
        rows = self.limits.max_sequences * (self.longest_draft + 1)
        if build.max_num_tokens < rows:
            raise ValueError(
                f"trtllm.max_num_tokens must hold limits.max_sequences x (max_draft_len + 1) = "
                f"{rows} tokens"
            )
        if build.max_num_tokens < self.limits.max_context:
            raise ValueError(
                f"trtllm.max_num_tokens {build.max_num_tokens} must hold a text of "
                f"limits.max_context {self.limits.max_context} tokens: a round is one request with "
                "all of it, which is not chunked"
            )
        for name, group in (("draft", ranks.draft), ("target", ranks.target)):
            if not group.devices or "cpu" in group.devices:
                raise ValueError(f"engine trtllm needs ranks.{name}.devices, a GPU number a rank")
            if len(set(group.devices)) != group.tp:
                raise ValueError(f"ranks.{name}.devices names a GPU twice: {group.devices}")
        shared = set(ranks.draft.devices) & set(ranks.target.devices)
        if shared and not build.shared_gpus:
            raise ValueError(
                f"draft and target both use GPU {sorted(shared, key=str)[0]}; "
                "give them different ranks.*.devices, or say trtllm.shared_gpus: true"
            )
        if build.shared_gpus and not shared:
            raise ValueError("trtllm.shared_gpus is true, but no GPU is in both ranks.*.devices")
        gpus = [gpu for gpu in (*ranks.draft.devices, *ranks.target.devices) if gpu != "cpu"]
        if build.mode == "orchestrator" and max(gpus) >= build.gpus_per_node:
            raise ValueError(
                f"trtllm.mode orchestrator runs on one node of {build.gpus_per_node} GPUs, but "
                f"GPU {max(gpus)} is on another; use mode leader"
            )
        if build.fast_logits and build.mode != "orchestrator":
            raise ValueError("trtllm.fast_logits needs trtllm.mode orchestrator")

    @property
    def longest_draft(self) -> int:
        """Tokens of the longest draft: no entry of the schedule is above `max_draft_len`."""
        return self.max_draft_len

    def draft_len(self, active: int) -> int:
        """Tokens drafted a round where so many sequences are active."""
        return scheduled(self.draft_len_schedule, active, self.max_draft_len)

    def default_acceptance(self, **changes: Any) -> Acceptance:
        """The deployment's acceptance parameters, with a request's changes that are not None."""
        values = self.acceptance.model_dump()
        if self.judge is not None:
            values["threshold"] = self.judge.threshold
        values.update({key: value for key, value in changes.items() if value is not None})
        return Acceptance(**values)

    def override(self, **changes: Any) -> Deployment:
        """A copy with top-level fields replaced, validated again; None leaves a field as it is."""
        values = self.model_dump() | {k: v for k, v in changes.items() if v is not None}
        return _validate(values, Path(), "the command line")


def load_deployment(path: Path | str) -> Deployment:
    """Read and check a deployment YAML; UserError with one line that names what is wrong."""
    import yaml

    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except FileNotFoundError:
        raise UserError(f"config: no file {path}") from None
    except (OSError, ValueError, yaml.YAMLError) as error:  # a ValueError: no UTF-8, no such date
        reason = " ".join(str(error).split())
        raise UserError(f"config: {path} is not readable YAML ({reason})") from None
    if not isinstance(raw, dict):
        raise UserError(f"config: {path} must hold a mapping, not {type(raw).__name__}")
    if (twice := _given_twice(node, set())) is not None:
        line = twice.start_mark.line + 1
        raise UserError(f"config: {path} line {line}: {twice.value} is given twice; keep one")
    return _validate(raw, path.resolve().parent, str(path))


def _given_twice(node: Any, seen: set[int]) -> Any:
    """The node of a mapping's key that repeats one before it, or None: YAML takes the last.

    seen  ids of the nodes that were looked through: aliases may lead back to them
    """
    if id(node) in seen or not isinstance(node.value, list):
        return None
    seen.add(id(node))
    parts, keys = list(node.value), set()
    if node.id == "mapping":
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue  # each adds what the others have not
            if (name := (key.tag, str(key.value))) in keys:
                return key
            keys.add(name)
        parts = [value for _, value in node.value]
    found = (_given_twice(part, seen) for part in parts)
    return next((key for key in found if key is not None), None)


def _validate(raw: dict[str, Any], folder: Path, source: str) -> Deployment:
    try:
        return Deployment.model_validate(raw, context={"folder": folder})
    except ValidationError as error:
        raise UserError(f"config: {source}: {describe(error)}") from None


def describe(error: ValidationError, root: str = "deployment") -> str:
    """All of a pydantic error on one line: `where: what (got value)`; `root` is the whole."""
    parts = []
    for item in error.errors(include_url=False):
        where = ".".join(str(key) for key in item["loc"]) or root
        got = item["input"]
        shown = f" (got {got!r})" if isinstance(got, (str, int, float, bool, type(None))) else ""
        what = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            what = "unknown key"
        parts.append(f"{where}: {what}{shown}")
    return "; ".join(parts)
