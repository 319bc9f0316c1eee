"""What became of answers with overridden tokens: tokens that the standard rule refuses."""

from __future__ import annotations

from collections.abc import Sequence

from judge_decoding.decoding.loop import Result
from judge_decoding.evaluation.parsers import FIRST_COUNTS, settled
from judge_decoding.evaluation.task import Item
from judge_decoding.text import Tokenizer


def overrides(
    tokenizer: Tokenizer,
    items: Sequence[Item],
    results: Sequence[Result],
    right: Sequence[bool],
    alone: Sequence[bool],
) -> dict[str, int]:
    """Counts over items with a known answer, in one order; `alone`: whether the target's own is
    right.

    tokens_in_right, tokens_in_wrong   overridden tokens, by the answer they stand in. A token in a
                                       wrong answer need not be what made it wrong.
    changed, changed_right             answers with one, and those of them that are right
    single, single_still_right         of the answers that the target alone gives rightly: those
                                       with exactly one, said before the answer is, and those of
                                       them that stay right. Greedy decoding differs from the
                                       target's own in that one token, so that the token alone made
                                       the difference: each that stays right is a correct token that
                                       the standard rule refuses, each other a wrong one that was
                                       let through. Only under parsers whose first answer counts.
    single_after_answer                as many again with exactly one that came when the answer
                                       stood already: they stay right whatever the token is
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
    """The text before a token, and the token's first character: it says whether the word before
    it goes on."""
    before = tokenizer.decode(ids[:place]).rstrip("\ufffd")
    return tokenizer.decode(ids[: place + 1])[: len(before) + 1]
