"""What became of answers with overridden tokens, those that the standard rule refuses."""

from __future__ import annotations

from collections.abc import Sequence

from judge_decoding.decoding.loop import Result
from judge_decoding.evaluation.item import Item
from judge_decoding.evaluation.parsers import FIRST_COUNTS, settled
from judge_decoding.text import Tokenizer


def overrides(
    tokenizer: Tokenizer,
    items: Sequence[Item],
    results: Sequence[Result],
    right: Sequence[bool],
    alone: Sequence[bool],
) -> dict[str, int]:
    """Counts over items with a known answer. All sequences have the order of the items; `alone`
    says whether the target's own answer is right.

    tokens_in_right, tokens_in_wrong   overridden tokens in right and in wrong answers. A token in a
                                       wrong answer need not be what made it wrong.
    changed, changed_right             answers with an overridden token, and the right ones of them
    single, single_still_right         answers that the target alone gets right and that have
                                       exactly one overridden token, before the answer itself; and
                                       those of them that stay right. Decoding is greedy, so this
                                       token alone made the difference: if the answer stays right,
                                       the standard rule refuses a correct token; if not, a wrong
                                       token was let through. Counted only under parsers whose first
                                       answer counts.
    single_after_answer                the same, but the token came after the answer: they stay
                                       right whatever the token is
    """
    counts = dict.fromkeys(
        (
            "tokens_in_right",
            "tokens_in_wrong",
            "changed",
            "changed_right",
            "single",
            "single_still_right",
            "single_after_answer",
        ),
        0,
    )
    for item, result, ok, ok_alone in zip(items, results, right, alone, strict=True):
        judged = [n for n, origin in enumerate(result.provenance) if origin == "judged"]
        counts["tokens_in_right" if ok else "tokens_in_wrong"] += len(judged)
        if judged:
            counts["changed"] += 1
            counts["changed_right"] += ok
        if len(judged) == 1 and ok_alone and item.parser in FIRST_COUNTS:
            if settled(item, _until(tokenizer, result.token_ids, judged[0])):
                counts["single_after_answer"] += 1
            else:
                counts["single"] += 1
                counts["single_still_right"] += ok
    return counts


def _until(tokenizer: Tokenizer, ids: Sequence[int], place: int) -> str:
    """The text before a token, and the token's first character, which says whether the word before
    it goes on."""
    before = tokenizer.decode(ids[:place]).rstrip("\ufffd")
    return tokenizer.decode(ids[: place + 1])[: len(before) + 1]
