"""A deployment: one YAML file that everything reads and nothing else configures.

Paths are relative to the YAML file; `~` is the home folder, and `cache:NAME` is NAME in the
project's cache folder ($JUDGE_DECODING_CACHE, else ~/.cache/judge-decoding).
"""

from judge_decoding.config.deployment import Deployment
from judge_decoding.config.fields import describe
from judge_decoding.config.paths import cache_folder, shipped
from judge_decoding.config.sections import (
    AuditConfig,
    JudgeConfig,
    ModelConfig,
    RankGroup,
    RanksConfig,
    ServerConfig,
)
from judge_decoding.config.trtllm import TRTLLM_RULES, EngineConfig, TrtLlmConfig
from judge_decoding.config.yaml_file import deployment_file, load_deployment

__all__ = [
    "TRTLLM_RULES",
    "AuditConfig",
    "Deployment",
    "EngineConfig",
    "JudgeConfig",
    "ModelConfig",
    "RankGroup",
    "RanksConfig",
    "ServerConfig",
    "TrtLlmConfig",
    "cache_folder",
    "deployment_file",
    "describe",
    "load_deployment",
    "shipped",
]
