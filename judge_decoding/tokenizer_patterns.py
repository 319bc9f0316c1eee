"""Whether the regular expressions of a `tokenizer.json` answer in time.

Oniguruma, which runs them inside `tokenizers`, backtracks, and nothing can interrupt it: while it
runs, no other thread does. It gives up after 10 million steps at one position of a text, which
takes a second, and then `tokenizers` panics. So a pattern is tried once, when it is loaded, on
texts that make a ruinous one slow. A pattern that is slow on other texts alone is not found.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

from judge_decoding.errors import UserError, shorten

LENGTHS = (16, 32, 64, 128, 256, 512, 1024)
"""Characters of the texts, the short ones first: a ruinous pattern is slow early."""
SLOW_S = 0.25
"""CPU seconds for 1,024 characters. Real tokenizers take 0.002."""
_COMMON = "aA1 .\n\u00e9\u4e2d"
_MOST = 64


def is_panic(error: BaseException) -> bool:
    """Whether Rust code has panicked: it is no Exception, and its class has no public name."""
    return type(error).__name__ == "PanicException"


def check_patterns(tokenizer: Any, path: Path) -> None:
    """Raise UserError if a pattern of a loaded `tokenizers.Tokenizer` is ruinous.

    Takes no time without patterns, as in the demo's target, and about 20 ms for Llama-3.
    """
    patterns = "".join(
        pattern
        for part in (tokenizer.normalizer, tokenizer.pre_tokenizer)
        if part is not None
        for pattern in _patterns(json.loads(part.__getstate__()))
    )
    if not patterns:
        return
    literal = re.sub(r"\\p?\{\^?\w+\}|\\.", "", patterns, flags=re.ASCII | re.DOTALL)
    characters = dict.fromkeys(_COMMON + "".join(filter(str.isalnum, literal)))
    for character in list(characters)[:_MOST]:
        for length in LENGTHS:
            began = time.thread_time()
            try:
                tokenizer.encode(character * length + "\0", add_special_tokens=False)
            except BaseException as error:
                if not is_panic(error):
                    raise
                raise UserError(
                    f"tokenizer: {path} has a regular expression that never ends ({shorten(error)})"
                ) from None
            if time.thread_time() - began > SLOW_S:
                raise UserError(
                    f"tokenizer: {path} has a regular expression that takes "
                    f"{time.thread_time() - began:.1f} s for {length} times {character!r}"
                )


def _patterns(part: Any) -> list[str]:
    """All regular expressions in the description of a normalizer or pre-tokenizer."""
    if isinstance(part, list):
        return [pattern for one in part for pattern in _patterns(one)]
    if not isinstance(part, dict):
        return []
    own = [part["Regex"]] if isinstance(part.get("Regex"), str) else []
    return own + [pattern for one in part.values() for pattern in _patterns(one)]
