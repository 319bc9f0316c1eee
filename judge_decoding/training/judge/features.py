"""The judge's training data as arrays: the target's hidden states at labelled tokens.

The states are read through the target's verify pass, in the dtype of inference, at each token's own
position.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from judge_decoding.checkpoint import Checkpoint, save_tensors
from judge_decoding.cpu import fast_dtype
from judge_decoding.errors import UserError, check_choice
from judge_decoding.progress import track
from judge_decoding.text import Tokenizer
from judge_decoding.torch_engine.engine import DTYPES
from judge_decoding.torch_engine.weights import Weights
from judge_decoding.training.labels import AfterError, LabelRecord
from judge_decoding.training.target_reader import ReadRequest, in_span, load_reader, read_states

READERS = ("torch", "transformers")
CONTEXT = 2048
"""Most tokens of a prompt with its answer, if the model has as many positions."""


@dataclass(frozen=True)
class LabelledTokens:
    """Labelled tokens, one row each.

    hidden    float32 [n, H]
    good      bool, the label
    mismatch  bool, the token is not the target's own choice, so the judge decides
    source    str, the label file's name
    group, domain, origin  str, and heldout  bool: of the record or its span
    """

    hidden: NDArray[np.float32]
    good: NDArray[np.bool_]
    mismatch: NDArray[np.bool_]
    group: NDArray[np.str_]
    domain: NDArray[np.str_]
    origin: NDArray[np.str_]
    source: NDArray[np.str_]
    heldout: NDArray[np.bool_]

    @property
    def mined(self) -> NDArray[np.bool_]:
        """bool [n], the token was written by a draft (build/mine_labels.py)."""
        return np.char.startswith(self.origin.astype(str), "mined")

    def where(self, keep: NDArray[np.bool_]) -> LabelledTokens:
        return replace(self, **{name: value[keep] for name, value in vars(self).items()})


class Precision(NamedTuple):
    """How the target computes the states: a deployment's `dtype` and `target.weights`.

    weights  None for `dtype`
    """

    dtype: str
    weights: Weights | None = None

    def __str__(self) -> str:
        return self.dtype if self.weights is None else f"{self.dtype}, weights {self.weights}"


def precision_of(dtype: str, reader: str, weights: str | None = None) -> Precision:
    """The precision of the options; dtype `auto` is a deployment's default, or bfloat16 for
    transformers."""
    if dtype not in (*DTYPES, "auto"):
        raise UserError(f"--dtype: {dtype!r} is not auto, {' or '.join(DTYPES)}")
    if dtype == "auto":
        dtype = fast_dtype() if reader == "torch" else "bfloat16"
    if weights is None or weights == dtype:
        return Precision(dtype)
    if reader != "torch":
        raise UserError(f"--weights {weights}: --reader {reader} has its own; leave it out")
    return Precision(dtype, check_choice("--weights", weights, get_args(Weights)))


def open_reader(kind: str, target: Checkpoint, precision: Precision) -> Any:
    """A reader of the target, with methods `teacher_forced` and `likelihood`."""
    if kind == "transformers":
        from judge_decoding.training.transformers_reader import TransformersReader

        if target.gguf is not None:
            raise UserError(
                f"--reader transformers: {target.folder} is a GGUF file, and this reader needs a "
                "Hugging Face folder"
            )
        return TransformersReader(target.folder, precision.dtype)
    context = min(CONTEXT, target.config.max_position_embeddings)
    return load_reader(
        target,
        dtype=precision.dtype,
        weights=precision.weights,
        max_sequences=1,
        max_context=context,
    )


def hidden_of_all(
    files: Mapping[str, Sequence[LabelRecord]],
    target: Checkpoint,
    cache: Path,
    precision: Precision,
    block: int,
    reader: str = "torch",
) -> dict[str, dict[str, torch.Tensor]]:
    """`hidden_of` each file. UserError if a file labels no token, or holds a text that is too long.
    This is checked before the first file is read, which takes minutes or hours."""
    most = target.config.max_position_embeddings
    most = min(CONTEXT, most) if reader == "torch" else most
    for name, records in files.items():
        _check_readable(name, [record for record in records if record.spans], target.folder, most)
    return {
        name: hidden_of(records, target, cache, precision, block, reader)
        for name, records in files.items()
    }


def _check_readable(name: str, labelled: Sequence[LabelRecord], folder: Path, most: int) -> None:
    if not labelled:
        raise UserError(f"labels: {name} labels no token; give files whose records have spans")
    tokenizer = Tokenizer(folder)
    prompts = {(r.prompt, r.chat): r for r in labelled}
    begins = {key: len(r.prompt_ids(tokenizer)) for key, r in prompts.items()}
    for record in labelled:
        length = begins[record.prompt, record.chat] + record.spans[-1].end
        if length > most:
            raise UserError(
                f"labels: {name}: record {record.id!r} has {length} tokens up to its last label, "
                f"and {most} can be read; shorten it or take it out"
            )


def hidden_of(
    records: Sequence[LabelRecord],
    target: Checkpoint,
    cache: Path,
    precision: Precision,
    block: int,
    reader: str = "torch",
) -> dict[str, torch.Tensor]:
    """`target_reader.read_states`, which takes minutes; the result is kept in the cache folder.

    reader  `torch`, the CPU engine, or `transformers`, on all GPUs
    """
    kind = block if reader == "torch" else f"{block} {reader}"
    path = cache / f"hidden-{_identity(records, target, precision, kind)}.safetensors"
    if path.is_file():
        return load_file(path)
    hidden = read_states(
        records, open_reader(reader, target, precision), Tokenizer(target.folder), block
    )
    cache.mkdir(parents=True, exist_ok=True)
    save_tensors(path, hidden)
    return hidden


def _identity(
    records: Sequence[LabelRecord], target: Checkpoint, precision: Precision, kind: int | str
) -> str:
    """Identity of the states: what is read, from which target and how, but not the labels."""
    read = [[r.prompt, r.response_ids, in_span(r), *(() if r.chat else ("raw",))] for r in records]
    identity = json.dumps([read, target.fingerprint, str(precision), kind])
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def likelihood_of(
    records: Sequence[LabelRecord],
    target: Checkpoint,
    cache: Path,
    precision: Precision,
    reader: str = "torch",
) -> torch.Tensor:
    """float32 [n]: the target's log-probability of each of the n tokens in spans, from the row
    before it. Kept in the cache folder, like the states."""
    kind = "likelihood" if reader == "torch" else f"likelihood {reader}"
    path = cache / f"likelihood-{_identity(records, target, precision, kind)}.safetensors"
    if path.is_file():
        return load_file(path)["logprob"]
    found = read_likelihood(
        records, open_reader(reader, target, precision), Tokenizer(target.folder)
    )
    cache.mkdir(parents=True, exist_ok=True)
    save_tensors(path, {"logprob": found})
    return found


def read_likelihood(
    records: Sequence[LabelRecord], target: Any, tokenizer: Tokenizer
) -> torch.Tensor:
    """As `likelihood_of`; records are read in the order of their text and share cached prefixes."""
    begins = [r.prompt_ids(tokenizer) for r in records]
    texts = [[*begin, *r.response_ids] for begin, r in zip(begins, records, strict=True)]
    found: dict[int, torch.Tensor] = {}
    held: list[int] = []
    order = sorted((n for n, r in enumerate(records) if r.spans), key=lambda n: texts[n])
    for n in track(order, "likelihood"):
        places = [len(begins[n]) + at for at in in_span(records[n])]
        text = texts[n][: places[-1] + 1]
        keep = 0
        while keep < min(len(held), places[0] - 1) and held[keep] == text[keep]:
            keep += 1
        [read] = target.likelihood([ReadRequest(0, keep, text[keep:])])
        found[n] = read[torch.tensor(places) - keep - 1]
        held = text
    target.release(0)
    return torch.cat([found[n] for n in range(len(records)) if n in found])


def gather(
    records: Sequence[LabelRecord],
    hidden: dict[str, torch.Tensor],
    feature: str,
    after_error: AfterError | None,
    source: str = "labels",
) -> LabelledTokens:
    """The labelled tokens of all records; ignored ones are left out.

    hidden  as from `target_reader.read_states`: one row per token in a span
    """
    places = [in_span(record) for record in records]
    lengths = [len(at) for at in places]
    labels = []
    for record, at in zip(records, places, strict=True):
        every = record.token_labels(after_error)
        labels += [every[i] for i in at]
    ids = np.array([r.response_ids[i] for r, at in zip(records, places, strict=True) for i in at])
    kept = np.array([label != "ignore" for label, _ in labels])

    def spread(values: Sequence[Any]) -> NDArray[Any]:
        return np.asarray(np.repeat(np.array(values), lengths)[kept])

    return LabelledTokens(
        hidden=hidden[feature][torch.from_numpy(kept)].float().numpy(),
        good=np.array([label == "good" for label, _ in labels])[kept],
        mismatch=(ids != hidden["argmax"].numpy())[kept],
        group=spread([r.group for r in records]),
        domain=spread([r.domain for r in records]),
        origin=np.array([origin for _, origin in labels])[kept],
        source=np.full(kept.sum(), source),
        heldout=spread([r.split == "heldout" for r in records]),
    )


def join(parts: Sequence[LabelledTokens]) -> LabelledTokens:
    """All tokens of all parts, in order."""
    return LabelledTokens(
        **{
            f.name: np.concatenate([getattr(p, f.name) for p in parts])
            for f in fields(LabelledTokens)
        }
    )
