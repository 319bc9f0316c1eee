"""A stream that is watched while others attack, in a process of its own: making the attacks must
not delay it.

    with Canary(server.url) as canary:
        with canary.watching() as seen:
            ...  # the attack
        assert not seen.wrong and seen.gap_s < 5
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from judge_client.client import JudgeClient
from judge_client.errors import JudgeClientError, ServerBusy
from judge_client.wire import GenerateRequest

ROOT = Path(__file__).resolve().parents[2]
AGAIN_S = 0.05


@dataclass
class Seen:
    """What the canary saw while it was watched.

    gap_s    longest time between two chunks of a stream
    first_s  longest time to a stream's first chunk, refusals included
    streams  begun
    busy     refusals because the queue was full; each was asked again
    wrong    errors, and texts that are not what the first stream had
    """

    gap_s: float = 0.0
    first_s: float = 0.0
    streams: int = 0
    busy: int = 0
    wrong: list[str] = field(default_factory=list)


class Canary:
    """The process. One stream follows another while it is watched, and none otherwise."""

    def __init__(self, url: str, tokens: int = 900) -> None:
        """tokens  of a stream; not more than the deployment allows"""
        line = [sys.executable, "-m", "tests.attacks.canary", url, str(tokens)]
        self._process = subprocess.Popen(
            line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )

    def __enter__(self) -> Canary:
        assert self._answer() == Seen(streams=1)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    @contextmanager
    def watching(self) -> Iterator[Seen]:
        """Streams run inside; what they saw is filled in at the end."""
        seen = Seen()
        self._ask()
        try:
            yield seen
        finally:
            seen.__dict__.update(self._ask().__dict__)

    def _ask(self) -> Seen:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> Seen:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the canary has died"
        return Seen(**json.loads(line))


class _Streams(threading.Thread):
    """Stream after stream until told to stop."""

    def __init__(self, client: JudgeClient, request: GenerateRequest, known: str | None) -> None:
        super().__init__(daemon=True)
        self._client, self._request, self.known = client, request, known
        self.seen = Seen()
        self.first, self.over = threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        asked = time.monotonic()
        while not self.over.is_set():
            try:
                self._stream(asked)
            except ServerBusy:
                self.seen.busy += 1
                time.sleep(AGAIN_S)
                continue
            except JudgeClientError as error:
                self.seen.wrong.append(str(error))
                self.first.set()
                time.sleep(1)
            asked = time.monotonic()

    def _stream(self, asked: float) -> None:
        text, last = "", 0.0
        for chunk in self._client.stream(self._request):
            now = time.monotonic()
            if last:
                self.seen.gap_s = max(self.seen.gap_s, now - last)
            else:
                self.seen.first_s = max(self.seen.first_s, now - asked)
                self.seen.streams += 1
            last, text = now, text + chunk.text
            self.first.set()
            if self.over.is_set() and self.known is not None:
                break
        if self.known is None:
            self.known = text
            self.over.set()
        elif not self.known.startswith(text) or (not self.over.is_set() and text != self.known):
            self.seen.wrong.append(f"another text: {text!r}")


def main() -> None:
    """Each line of the input begins or ends a watch and gets a line: what was seen."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("tokens", type=int)
    options = parser.parse_args()
    request = GenerateRequest("The canary", max_tokens=options.tokens, ignore_eos=True)
    with JudgeClient(options.url) as client:
        first = _Streams(client, request, None)
        first.join()
        print(
            json.dumps(asdict(Seen(streams=first.seen.streams, wrong=first.seen.wrong))), flush=True
        )
        streams: _Streams | None = None
        for _ in sys.stdin:
            if streams is None:
                streams = _Streams(client, request, first.known)
                streams.first.wait()
                print(json.dumps(asdict(Seen())), flush=True)
            else:
                streams.over.set()
                streams.join()
                print(json.dumps(asdict(streams.seen)), flush=True)
                streams = None


if __name__ == "__main__":
    main()
