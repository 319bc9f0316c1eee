"""What people see: coloured answers, a conversation, a benchmark's table.

Colours, marks and the conversation itself are the client's (`judge_client.terminal`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from judge_client import terminal
from judge_client.terminal import Runs, has_colour
from judge_client.terminal import console as console
from judge_client.terminal import print_legend as print_legend
from judge_client.terminal import write as write
from judge_decoding.decoding.contracts import Provenance
from judge_decoding.decoding.sequence import AcceptanceRecord, Request, Token
from judge_decoding.errors import UserError
from judge_decoding.text import TextStream, Tokenizer, check_unicode

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from judge_decoding.decoding.loop import Result
    from judge_decoding.pipeline import Pipeline


class TokenPainter:
    """Turns an answer's tokens into coloured text as they stream in.

    The text is the decoder's: stop strings are cut, unfinished characters are held back. The tokens
    only say who owns each of its characters.
    """

    def __init__(
        self, tokenizer: Tokenizer, prompt_ids: Sequence[int] = (), *, colour: bool
    ) -> None:
        self._stream = TextStream(tokenizer, prompt=prompt_ids)
        self._painter = terminal.Painter(colour=colour)
        self._owners: list[Provenance] = []  # of the characters decoded but not yet shown
        self._last: Provenance = "target"

    def paint(self, tokens: Iterable[Token], text: str) -> Runs:
        """The coloured form of `text`, which may be shown now that `tokens` have come in."""
        for token in tokens:
            self._owners += [token.provenance] * len(self._stream.push(token.id))
        owners, self._owners = self._owners[: len(text)], self._owners[len(text) :]
        self._last = owners[-1] if owners else self._last
        # Flushed text may be longer than the pieces: an unfinished character at the very end.
        owners += [self._last] * (len(text) - len(owners))
        pieces = list[tuple[str | None, str]]()
        start = 0
        for owner, run in groupby(owners):
            end = start + len(list(run))
            pieces.append((owner, text[start:end]))
            start = end
        return self._painter.paint(pieces)

    def close(self) -> Runs:
        """The mark that ends the answer, if one is open."""
        return self._painter.close()


def print_result(out: Console, result: Result, tokenizer: Tokenizer) -> None:
    """A whole answer, coloured."""
    painter = TokenPainter(tokenizer, colour=has_colour(out))
    pairs = zip(result.token_ids, result.provenance, strict=True)
    tokens = (Token(token, whence, None) for token, whence in pairs)
    write(out, [*painter.paint(tokens, result.text), *painter.close()])


def speed_line(tokens: int, seconds: float, records: Sequence[AcceptanceRecord]) -> str:
    """The line under an answer, or under a batch; see `judge_client.terminal.speed_line`."""
    return terminal.speed_line(tokens, seconds, [record.to_dict() for record in records])


def converse(pipeline: Pipeline) -> None:
    """Chat on stdin and stdout until /quit or the end of input."""
    out = console()

    def send(history: list[dict[str, str]]) -> str:
        try:
            check_unicode("prompt", history[-1]["content"])
        except UserError as error:
            raise terminal.TurnRefused(str(error)) from None
        try:
            return _turn(pipeline, history, out)
        except UserError as error:  # the conversation no longer fits the context
            raise terminal.TurnRefused(f"{error}; /new starts over") from None

    terminal.converse(out, send)


def _turn(pipeline: Pipeline, history: Sequence[dict[str, str]], out: Console) -> str:
    """Stream one answer and return it. Ctrl-C cuts it short; the answer is then what was shown."""
    deployment, decoder = pipeline.deployment, pipeline.decoder
    began = time.perf_counter()
    prompt = pipeline.tokenizer.chat(history)
    number = decoder.add(
        Request(
            prompt_ids=prompt,
            max_tokens=deployment.limits.max_tokens,
            acceptance=deployment.default_acceptance(),
        )
    )
    painter = TokenPainter(pipeline.tokenizer, prompt, colour=has_colour(out))
    finished = False
    try:
        while not finished:
            for update in decoder.step():
                write(out, painter.paint(update.tokens, update.text), end="")
                finished = update.finish_reason is not None
    except KeyboardInterrupt:
        decoder.cancel(number)
    seconds = time.perf_counter() - began
    write(out, painter.close())
    result = decoder.result(number)
    out.print(speed_line(len(result.token_ids), seconds, [result.record]), style="dim")
    return result.text


_COLUMNS = (
    ("tok/s", "tokens_per_s", ".1f"),
    ("decode tok/s", "decode_tokens_per_s", ".1f"),
    ("tokens", "tokens_per_answer", ".1f"),
    ("cut", "cut_answers", "d"),
    ("same", "same_as_none", ".0%"),
    ("draft", "draft_len", "d"),
    ("accepted length", "mean_acceptance_length", ".2f"),
    ("rate", "draft_acceptance_rate", ".0%"),
    ("ms/round", "ms_per_round", ".1f"),
    ("p50", "ms_per_round_p50", ".1f"),
    ("p90", "ms_per_round_p90", ".1f"),
    ("propose", "ms_propose", ".1f"),
    ("verify", "ms_verify", ".1f"),
    ("host", "host_share", ".1%"),
    ("judge", "judge_share", ".1%"),
    ("weights GB/s", "weight_gb_per_s", ".1f"),
    ("of bandwidth", "bandwidth_share", ".0%"),
)
"""Heading, key in a benchmark's result, format."""


def speed_table(results: Sequence[dict[str, Any]], title: str) -> Table:
    """One row per system, with a dash for a figure that does not exist."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column("system", no_wrap=True)
    for heading, _, _ in _COLUMNS:
        table.add_column(heading, justify="right")
    for row in results:
        cells = ("-" if row[key] is None else format(row[key], spec) for _, key, spec in _COLUMNS)
        table.add_row(row["name"], *cells)
    return table


def print_report(out: Console, report: dict[str, Any]) -> None:
    """A benchmark's report as `bench.run` returns it."""
    source = report["provenance"]
    title = (
        f"{source['deployment']}, {source['dtype']}, {source['prompts']} prompts, up to "
        f"{source['max_tokens']} new tokens, batch 1, greedy, {source['threads']} threads"
    )
    out.print(speed_table(report["results"], title))
    for name, reason in report["not_measured"].items():
        out.print(f"{name}: not measured; {reason}", soft_wrap=True, markup=False)
    out.print(
        "tok/s includes prefill; accepted length and rate count all rounds that drafted (a peer's "
        "length is tokens / rounds); all other columns leave out each answer's first round",
        soft_wrap=True,
    )
    out.print(
        "tokens: per answer; cut: answers that ended at the limit; same: answers with the text of "
        "rule none; draft: the longest draft; weights: layers and head, once per pass of target "
        "and draft, without embeddings, caches and activations; of bandwidth: their share of "
        f"{report['bandwidth']['read_gb_per_s']:.1f} GB/s, the median of a sum over 0.5 GB",
        soft_wrap=True,
    )
    for name, value in report["ratios"].items():
        out.print(f"{name:<22}{value:6.2f}x")
    peak = report["memory"]["peak_mb"]
    if peak is not None:
        alone = report["memory"]["peak_without_peers_mb"]
        out.print(f"peak memory {peak:.0f} MB, {alone:.0f} MB before the peers were loaded")
    out.print(f"{source['cpu']}, GPU {source['gpu']}, commit {source['git_sha']}, {source['date']}")
