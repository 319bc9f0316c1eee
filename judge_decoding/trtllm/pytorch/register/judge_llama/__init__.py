"""For `--custom_module_dirs`, which imports this folder as a top-level package of its name.

A folder of its own, since its parent goes to the front of `sys.path`.
"""

from judge_decoding.trtllm.pytorch.model import JudgeLlamaForCausalLM

__all__ = ["JudgeLlamaForCausalLM"]
