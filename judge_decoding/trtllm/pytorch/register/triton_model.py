"""Triton's own `llmapi` model, with the judged architecture registered before it loads.

`prepare-pytorch-target --llmapi` copies this file to `1/model.py` of the model and links the
container's files as the folder `llmapi` beside it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

_LLMAPI = Path(__file__).parent / "llmapi"
sys.path.insert(0, str(_LLMAPI))  # it imports the module `helpers` beside it
_spec = spec_from_file_location("llmapi_model", _LLMAPI / "model.py")
assert _spec is not None and _spec.loader is not None
_stock = module_from_spec(_spec)
sys.modules["llmapi_model"] = _stock  # its dataclasses look their module up
_spec.loader.exec_module(_stock)


class TritonPythonModel(_stock.TritonPythonModel):  # type: ignore[misc,name-defined]
    """The stock model. It defers importing TensorRT-LLM to `initialize`, and so does this."""

    def initialize(self, args: Any) -> None:
        import_module("judge_decoding.trtllm.pytorch.model")
        super().initialize(args)
