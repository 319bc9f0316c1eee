"""`real-pair`: a real pair of chat models, downloaded or of your own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from judge_decoding.checkpoint import Checkpoint
from judge_decoding.checkpoint.real_pair import DRAFT, TARGET, prepare
from judge_decoding.config.checkpoints import Checkpoints
from judge_decoding.config.paths import cache_folder, shipped
from judge_decoding.files import write_whole

_CONFIG = "real-pair.yaml"


def real_pair(
    target: Annotated[
        Path | None, typer.Option(help="A folder or GGUF file instead of the target's download.")
    ] = None,
    draft: Annotated[
        Path | None, typer.Option(help="A folder or GGUF file instead of the draft's download.")
    ] = None,
) -> None:
    """Download a real pair of chat models (1.6 GB), or check a pair of your own."""
    own = {"target": target, "draft": draft}
    split = {"target": TARGET, "draft": DRAFT}
    prepare([model for name, model in split.items() if own[name] is None], cache_folder())
    config = shipped(f"configs/{_CONFIG}")
    if target is None and draft is None:
        print(f"real pair: the deployment is {config}")
        return
    paths = {
        name: (path or cache_folder() / split[name].file).expanduser().absolute()
        for name, path in own.items()
    }
    pair = {name: Checkpoint(path) for name, path in paths.items()}
    for checkpoint in pair.values():
        checkpoint.tensors.check_shapes(checkpoint.config)
    Checkpoints(pair["target"], pair["draft"], None).check_vocabulary()
    import yaml

    document = yaml.safe_load(config.read_text())
    for name, path in paths.items():
        document[name]["model"] = str(path)
    made = cache_folder() / _CONFIG
    made.parent.mkdir(parents=True, exist_ok=True)
    write_whole(made, yaml.safe_dump(document, sort_keys=False), "real pair")
    print(f"real pair: the deployment is {made}")
