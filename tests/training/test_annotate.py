"""The terminal annotator, driven through a real terminal by key strokes."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from judge_decoding.training.labels import read_labels

SCRIPT = Path(__file__).resolve().parents[2] / "build" / "annotate.py"
RIGHT, LEFT, DOWN, END = "\x1b[C", "\x1b[D", "\x1b[B", "\x1b[F"
ANSWERS = [
    {"prompt": "The capital of Peru?", "response": "It is Lisbon, I think."},
    {"prompt": "Two and two?", "response": "Four.", "group": "sum:2+2", "domain": "sums"},
    {"prompt": "A word?", "response": "Yes", "chat": False, "split": "heldout"},
]
"""The tiny tokenizer's tokens are bytes."""


def annotate(folder: Path, tokenizer: Path, keys: str, *options: str) -> tuple[int, str]:
    """Press `keys` once the first answer is shown -> exit code, everything on the screen."""
    source = folder / "answers.jsonl"
    source.write_text("".join(json.dumps(a) + "\n" for a in ANSWERS))
    ours, theirs = pty.openpty()
    command = [sys.executable, str(SCRIPT), str(source), "--out", str(folder / "labels.jsonl")]
    process = subprocess.Popen(
        [*command, "--target", str(tokenizer), *options],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=own_the_terminal,
        env=os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"},
    )
    os.close(theirs)
    screen, pressed, deadline = "", False, time.monotonic() + 120
    try:
        while True:
            assert select.select([ours], [], [], deadline - time.monotonic())[0], screen
            try:
                piece = os.read(ours, 4096)
            except OSError:  # the terminal's other end is closed
                break
            if not piece:
                break
            screen = plain(screen + piece.decode(errors="replace"))
            if not pressed and "token 1 of" in screen:
                os.write(ours, keys.encode())
                pressed = True
        return process.wait(30), screen
    finally:
        process.kill()
        process.wait(30)
        os.close(ours)


def own_the_terminal() -> None:
    """Makes Ctrl-C a signal, even if `make test` was started in the background (sh's `&`)."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def plain(screen: str) -> str:
    """The screen without colours and cursor movements."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen)


def spans(folder: Path) -> dict[str, list[tuple[int, int, str]]]:
    records = read_labels([folder / "labels.jsonl"])
    return {r.prompt: [(s.start, s.end, s.label) for s in r.spans] for r in records}


def test_errors_are_marked_decisions_undone_and_a_second_run_goes_on(tiny_target, tmp_path):
    # 1. Lisbon is the error: six tokens from the seventh on. "Four." is first marked ignored by
    #    mistake, and then good. The third is left for later.
    to_lisbon, over_it = RIGHT * 7 + LEFT, "v" + "l" * 5
    code, screen = annotate(tmp_path, tiny_target, f"{to_lisbon}{over_it}eiugs")
    assert code == 0, screen
    assert "The capital of Peru?" in screen and "2 of 3, sums" in screen
    assert spans(tmp_path) == {
        "The capital of Peru?": [(0, 6, "good"), (6, 12, "bad"), (12, 22, "ignore")],
        "Two and two?": [(0, 5, "good")],
    }
    # 2. Only the answer that was left is shown now; its last token is the error.
    code, screen = annotate(tmp_path, tiny_target, f"{DOWN}0{END}e", "--after-error", "negative")
    assert code == 0, screen
    assert "Peru" not in screen and "3 of 3" in screen
    third = read_labels([tmp_path / "labels.jsonl"])[2]
    assert [(s.start, s.end, s.label, s.origin) for s in third.spans] == [
        (0, 2, "good", "before_error"),
        (2, 3, "bad", "person"),
    ]
    assert (third.chat, third.split, third.response_ids) == (False, "heldout", [56, 68, 82])
    assert read_labels([tmp_path / "labels.jsonl"])[1].group == "sum:2+2"
    # 3. Another annotator sees all answers, and quits after one.
    code, screen = annotate(tmp_path, tiny_target, "gq", "--annotator", "kim")
    assert code == 0, screen
    kim = read_labels([tmp_path / "labels.jsonl"])[3:]
    assert [(r.prompt, r.spans[0].origin) for r in kim] == [("The capital of Peru?", "person_kim")]


def test_a_line_cut_off_by_a_crash_is_dropped_and_its_answer_shown_again(tiny_target, tmp_path):
    assert annotate(tmp_path, tiny_target, "ggg")[0] == 0
    labels = tmp_path / "labels.jsonl"
    whole = labels.read_text()
    labels.write_text(whole[:-20])
    code, screen = annotate(tmp_path, tiny_target, "\x03")  # Ctrl-C
    assert code == 0, screen
    assert "A word?" in screen and "1 left" in screen
    assert labels.read_text() == "".join(whole.splitlines(keepends=True)[:2])
    assert annotate(tmp_path, tiny_target, "g")[0] == 0
    assert labels.read_text() == whole


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("labels.jsonl", "needs a terminal"),
        ("labels.jsonl.gz", "write labels.jsonl and gzip it when it is done"),  # plain text it was
    ],
)
def test_what_cannot_work_is_said_at_once(tiny_target, tmp_path, out, message):
    source = tmp_path / "answers.jsonl"
    source.write_text(json.dumps(ANSWERS[0]) + "\n")
    command = [sys.executable, str(SCRIPT), str(source), "--out", str(tmp_path / out)]
    done = subprocess.run(
        [*command, "--target", str(tiny_target)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
