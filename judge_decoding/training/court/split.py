"""The split into questions to train on and held-out ones: half of the facts, one whole domain."""

from __future__ import annotations

import hashlib

from judge_decoding.training.labels import Split

HELDOUT_SHARE = 0.5
HELD_OUT_DOMAIN = "plurals"
"""This domain is held out completely, to measure a judge on a kind of question that it was never
trained on. It shares no fact with another domain; capitals and demonyms share their countries."""


def split_of(group: str, seed: int) -> Split:
    """The split of a group, by its hash, so that adding questions moves no other group."""
    digest = hashlib.sha256(f"{seed} {group}".encode()).digest()
    return "heldout" if digest[0] < 256 * HELDOUT_SHARE else "train"


def split_in(domain: str, group: str, seed: int) -> Split:
    """`split_of`, except that all of HELD_OUT_DOMAIN is held out."""
    return "heldout" if domain == HELD_OUT_DOMAIN else split_of(group, seed)
