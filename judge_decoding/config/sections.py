"""The sections of a deployment, except TensorRT-LLM's (`config.trtllm`)."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from judge_decoding.config.fields import ModelPath, Strict
from judge_decoding.decoding.contracts import RuleName


class ModelConfig(Strict):
    """A Hugging Face Llama folder, or a GGUF file."""

    model: ModelPath
    weights: Literal["auto", "float32", "bfloat16", "float16", "int8", "int4"] | None = None
    """The format that engine `torch` stores the matrices in; None for `dtype`."""
    shape: str | None = None
    """A known shape (`llama-3.1-70b`), for planning without the folder."""


class JudgeConfig(Strict):
    """A judge file; `threshold` overrides the one stored in it."""

    path: ModelPath
    threshold: float | None = Field(default=None, ge=0, le=1)


class AcceptanceConfig(Strict):
    """The default rule and every rule's parameters; see `judge_decoding.decoding.acceptance`."""

    rule: RuleName = "strict"  # lossy rules are opt-in
    top_k: int = Field(default=3, ge=1, le=1000)
    typical_epsilon: float = Field(default=0.09, gt=0, le=1)
    typical_delta: float = Field(default=0.3, gt=0, le=1)
    kl_tau: float = Field(default=0.3, gt=0)
    kl_confident: float = Field(default=0.9, gt=0, le=1)
    fly_entropy: float = Field(default=0.3, ge=0)
    fly_window: int = Field(default=6, ge=1, le=64)
    synthetic_length: float = Field(default=4.0, ge=1, le=128)
    protect_end_ids: bool = True


class Limits(Strict):
    """Bounds on memory (`max_sequences` x `max_context` positions are allocated) and on requests.

    max_context  positions of a prompt and its answer. The default is lowered to the models' own
                 `max_position_embeddings` (`Deployment.read`); a larger value in the file is
                 refused when the models are loaded
    """

    max_sequences: int = Field(default=4, ge=1, le=1024)
    max_context: int = Field(default=2048, ge=16, le=1_048_576)
    max_tokens: int = Field(default=1024, ge=1)
    prefill_chunk: int = Field(default=256, ge=1, le=65536)


class RankGroup(Strict):
    """The ranks of one model: `tp` of them, tensor-parallel.

    devices  one per rank: `cpu` or a GPU number; an empty list puts all ranks on the CPU
    threads  CPU threads per rank; 0 divides PyTorch's default among the group
    """

    tp: int = Field(default=1, ge=1, le=64)
    devices: list[Literal["cpu"] | Annotated[int, Field(ge=0)]] = Field(default_factory=list)
    threads: int = Field(default=0, ge=0, le=1024)

    @model_validator(mode="after")
    def _a_device_a_rank(self) -> RankGroup:
        if self.devices and len(self.devices) != self.tp:
            raise ValueError(f"devices names {len(self.devices)}, but tp is {self.tp}: one a rank")
        return self


class RanksConfig(Strict):
    """MPI ranks: rank 0 leads, then the draft's, then the target's (docs/ranks.md).

    colocate_draft     the target's first rank holds the whole draft, which has no rank of its own
    timeout_s          time limit for one answer of a rank, after which the whole job ends
    startup_timeout_s  time limit for all ranks to start, loading included
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


class TlsConfig(Strict):
    """TLS of the gRPC endpoint. HTTP has none and then listens on loopback only.

    certificate  PEM, with the chain below its root
    key          PEM
    ca           PEM of the root; the server's own warm-up checks the certificate against it
    name         a name in the certificate; needed because the warm-up connects by address
    """

    certificate: ModelPath
    key: ModelPath
    ca: ModelPath
    name: str = "localhost"


class ServerConfig(Strict):
    """The server's ports, and the limits on requests.

    http_port          None, in the file `off`: no HTTP but the metrics
    openai_port        of the OpenAI-compatible endpoint; None, in the file `off`: none
    max_queue          requests that may wait while all sequences are in use; more are refused
    max_wait_s         a request that would wait longer, by the time of the last answers, is refused
    max_prompt_bytes   largest text of a request
    deadline_ms        time limit of every request, waiting included; a request may only lower it
    stream_interval    rounds between two responses of a stream, after the first (TensorRT-LLM's
                       name); a response costs the same however many tokens it holds
    metrics            publish the loop's own metrics beside Triton's
    drain_s            time that running requests get after SIGTERM
    startup_timeout_s  time limit for the warm-up request's answer, loading included
    stall_timeout_s    time for which tritonserver or a model's process may be stopped (SIGSTOP);
                       then the server ends. Ranks have `ranks.timeout_s`
    token_file         its first line is a token that every request must bring (docs/operations/)
    """

    host: str = "127.0.0.1"
    http_port: Annotated[int, Field(ge=1, le=65535)] | None = 8000
    openai_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    grpc_port: int = Field(default=8001, ge=1, le=65535)
    metrics_port: int = Field(default=8002, ge=1, le=65535)
    max_queue: int = Field(default=64, ge=0)
    max_wait_s: float | None = Field(default=None, gt=0)
    max_prompt_bytes: int = Field(default=1_000_000, ge=1)
    deadline_ms: int | None = Field(default=None, ge=1)
    stream_interval: int = Field(default=1, ge=1, le=1024)
    metrics: bool = True
    drain_s: float = Field(default=30.0, ge=0)
    startup_timeout_s: float = Field(default=900.0, gt=0)
    stall_timeout_s: float = Field(default=30.0, gt=0)
    tls: TlsConfig | None = None
    token_file: ModelPath | None = None

    @field_validator("http_port", "openai_port", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        return None if value is False or value == "off" else value  # YAML's `off` is False


class AuditConfig(Strict):
    """The log of finished requests that `judge-decoding audit` decodes again (docs/evaluation.md).

    log     file of JSON lines; its folder must exist
    share   share of the requests that are logged
    max_mb  size limit of the log, the older half included
    """

    log: ModelPath
    share: float = Field(default=0.05, gt=0, le=1)
    max_mb: float = Field(default=64.0, ge=0.001, le=1e6)
