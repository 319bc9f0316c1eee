"""Reads a deployment from its YAML file; every error is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from judge_client.echo import cut
from judge_decoding.config.deployment import Deployment
from judge_decoding.config.paths import shipped
from judge_decoding.errors import UserError


def deployment_file(path: Path | str) -> Path:
    """The file of a deployment, given by its path or by the name of a shipped one: `demo` is
    configs/demo.yaml, wherever the package is installed. Reading it finds out whether it exists."""
    path = Path(path)
    if path.suffix or len(path.parts) > 1 or path.exists():
        return path
    try:
        return shipped(f"configs/{path}.yaml")
    except UserError:
        return path


def load_deployment(path: Path | str) -> Deployment:
    """Read and check the YAML of a deployment (`deployment_file`).

    UserError with one line that names what is wrong.
    """
    import yaml

    path = deployment_file(path)
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        raw = yaml.safe_load(text)
    except FileNotFoundError:
        raise UserError(f"config: no file {path}") from None
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: not UTF-8, a bad date
        reason = " ".join(str(error).split())
        raise UserError(f"config: {path} is not readable YAML ({reason})") from None
    if not isinstance(raw, dict):
        raise UserError(f"config: {path} must hold a mapping, not {type(raw).__name__}")
    if (twice := _given_twice(node, set())) is not None:
        line = twice.start_mark.line + 1
        raise UserError(
            f"config: {path} line {line}: {cut(str(twice.value))} is given twice; keep one"
        )
    return Deployment.read(raw, path.resolve().parent, str(path))


def _given_twice(node: Any, seen: set[int]) -> Any:
    """The node of the first key that its mapping gives twice, or None. (YAML takes the last.)

    seen  ids of the nodes visited so far, because aliases may lead back to them
    """
    if id(node) in seen or not isinstance(node.value, list):
        return None
    seen.add(id(node))
    parts, keys = list(node.value), set()
    if node.id == "mapping":
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                continue  # may be repeated: each adds the keys that the others lack
            if (name := (key.tag, str(key.value))) in keys:
                return key
            keys.add(name)
        parts = [value for _, value in node.value]
    found = (_given_twice(part, seen) for part in parts)
    return next((key for key in found if key is not None), None)
