"""The client's pure parts: request tensors, responses, what is shown, what is refused."""

from __future__ import annotations

import io
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tritonclient.grpc import service_pb2
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from judge_client import terminal
from judge_client.commands.answer import speed_line
from judge_client.commands.generate import document
from judge_client.connection import check_address
from judge_client.errors import JudgeClientError, plain
from judge_client.wire import (
    Answer,
    Chunk,
    GeneratedToken,
    GenerateRequest,
    infer_message,
    infer_request,
    read_chunk,
    read_outputs,
    stop_request,
)

ROOT = Path(__file__).resolve().parents[2]
NUMPY = {"BOOL": np.bool_, "INT32": np.int32, "UINT64": np.uint64, "FP32": np.float32}


def tensors(message: Any) -> dict[str, tuple[str, list[Any]]]:
    """A request's inputs as Triton reads them: name -> (type, values)."""
    found = {}
    for tensor, raw in zip(message.inputs, message.raw_input_contents, strict=True):
        if tensor.datatype == "BYTES":
            values = deserialize_bytes_tensor(raw).tolist()
        else:
            values = np.frombuffer(raw, NUMPY[tensor.datatype]).tolist()
        assert list(tensor.shape) == [1, len(values)]
        found[tensor.name] = (tensor.datatype, values)
    return found


def response(*, final: bool = False, error: str = "", **outputs: tuple[str, list[Any]]) -> Any:
    """A ModelStreamInferResponse as the server sends it."""
    made = service_pb2.ModelStreamInferResponse(error_message=error)
    inner = made.infer_response
    inner.parameters["triton_final_response"].bool_param = final
    for name, (datatype, values) in outputs.items():
        inner.outputs.add(name=name, datatype=datatype, shape=[len(values)])
        if datatype == "BYTES":
            texts = np.array([value.encode() for value in values], dtype=object)
            raw = serialize_byte_tensor(texts).item() if values else b""
        else:
            raw = np.array(values, NUMPY[datatype]).tobytes()
        inner.raw_output_contents.append(raw)
    return made


def read_response(message: Any) -> tuple[Chunk | None, bool]:
    outputs, final = read_outputs(message)
    return (None if outputs is None else read_chunk(outputs)), final


def test_a_plain_request_sends_its_text_and_nothing_it_was_not_given() -> None:
    message = infer_request(GenerateRequest("Zürich"), "id-1", stream=False)
    assert (message.model_name, message.id) == ("ensemble", "id-1")
    assert message.parameters["triton_enable_empty_final_response"].bool_param
    assert tensors(message) == {
        "text_input": ("BYTES", ["Zürich".encode()]),
        "stream": ("BOOL", [False]),
    }
    assert [output.name for output in message.outputs] == [
        "text_output",
        "finish_reason",
        "num_input_tokens",
        "num_output_tokens",
    ]


def test_every_field_has_its_tensor() -> None:
    request = GenerateRequest(
        "x",
        chat=True,
        max_tokens=7,
        min_tokens=2,
        stop=["\n\n", "END"],
        temperature=0.5,
        top_k=5,
        top_p=0.75,
        seed=2**63 + 1,
        rule="judge",
        threshold=0.25,
        max_draft_len=0,
        ignore_eos=False,
        provenance=True,
        judge_scores=True,
        record=True,
    )
    message = infer_request(request, "1", stream=True, model="other")
    assert message.model_name == "other"
    assert tensors(message) == {
        "text_input": ("BYTES", [b"x"]),
        "stream": ("BOOL", [True]),
        "chat": ("BOOL", [True]),
        "max_tokens": ("INT32", [7]),
        "min_tokens": ("INT32", [2]),
        "stop_words": ("BYTES", [b"\n\n", b"END"]),
        "temperature": ("FP32", [0.5]),
        "top_k": ("INT32", [5]),
        "top_p": ("FP32", [0.75]),
        "seed": ("UINT64", [2**63 + 1]),
        "acceptance_rule": ("BYTES", [b"judge"]),
        "judge_threshold": ("FP32", [0.25]),
        "max_draft_len": ("INT32", [0]),
        "ignore_eos": ("BOOL", [False]),
        "return_provenance": ("BOOL", [True]),
        "return_judge_scores": ("BOOL", [True]),
        "return_acceptance_record": ("BOOL", [True]),
    }
    assert [output.name for output in message.outputs][4:] == [
        "provenance",
        "output_ids",
        "token_texts",
        "judge_scores",
        "speculative_decoding",
    ]


def test_a_conversation_travels_as_json_beside_an_empty_text() -> None:
    messages = [{"role": "user", "content": "Grüezi"}, {"role": "assistant", "content": "Hi"}]
    sent = tensors(infer_request(GenerateRequest(messages=messages), "1", stream=True))
    assert json.loads(sent["messages"][1][0]) == messages
    assert sent["text_input"] == ("BYTES", [b""])


def test_one_stop_string_may_be_given_alone() -> None:
    sent = tensors(infer_request(GenerateRequest("x", stop="END"), "1", stream=True))
    assert sent["stop_words"] == ("BYTES", [b"END"])


def test_a_message_for_another_model_names_its_outputs() -> None:
    message = infer_message("core", "a", {"input_ids": ("INT32", [5, 6])}, ["output_ids"])
    assert (message.model_name, message.id) == ("core", "a")
    assert tensors(message) == {"input_ids": ("INT32", [5, 6])}
    assert [output.name for output in message.outputs] == ["output_ids"]


def test_a_stop_request_reuses_the_id() -> None:
    message = stop_request("abc")
    assert message.id == "abc"
    assert tensors(message) == {"text_input": ("BYTES", [b""]), "stop": ("BOOL", [True])}


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (
            GenerateRequest("x", max_tokens=2**31),
            "max_tokens: 2147483648 is not a value of type INT32",
        ),
        (GenerateRequest("x", max_tokens=1.5), "max_tokens: 1.5 is not a value of type INT32"),  # type: ignore[arg-type]
        (GenerateRequest("x", max_tokens=True), "max_tokens: True is not a value of type INT32"),
        (GenerateRequest("x", seed=-1), "seed: -1 is not a value of type UINT64"),
        (GenerateRequest("x", seed=2**64), f"seed: {2**64} is not a value of type UINT64"),
        (GenerateRequest("x", chat=1), "chat: 1 is not a value of type BOOL"),  # type: ignore[arg-type]
        (GenerateRequest("\udcff"), "text_input: it is not valid UTF-8"),
        (GenerateRequest("x", stop=["a", "\udcff"]), "stop_words: it is not valid UTF-8"),
    ],
)
def test_what_a_tensor_cannot_hold_is_refused(request_: GenerateRequest, complaint: str) -> None:
    with pytest.raises(JudgeClientError) as caught:
        infer_request(request_, "1", stream=True)
    assert str(caught.value) == complaint


def test_what_only_the_server_can_judge_is_sent() -> None:
    sent = tensors(
        infer_request(
            GenerateRequest(b"\xff", max_tokens=-3, temperature=math.nan), "1", stream=True
        )
    )
    assert sent["text_input"] == ("BYTES", [b"\xff"])
    assert sent["max_tokens"] == ("INT32", [-3])
    assert math.isnan(sent["temperature"][1][0])


def test_a_response_with_everything() -> None:
    record = {"num_spec_steps": 1, "num_accepted_draft_tokens": 1, "num_judged_tokens": 1}
    chunk, final = read_response(
        response(
            final=True,
            text_output=("BYTES", ["né"]),
            finish_reason=("BYTES", ["length"]),
            num_input_tokens=("INT32", [5]),
            num_output_tokens=("INT32", [9]),
            provenance=("BYTES", ["judged", "target"]),
            token_texts=("BYTES", ["n", "é"]),
            judge_scores=("FP32", [0.5, math.nan]),
            output_ids=("INT32", [11, 12]),
            speculative_decoding=("BYTES", [json.dumps(record)]),
            token_logprobs=("FP32", [-0.5, -2.0]),
            top_logprobs=("BYTES", [json.dumps([[{"id": 11, "token": "n", "logprob": -0.5}], []])]),
        )
    )
    top = [{"id": 11, "token": "n", "logprob": -0.5}]
    tokens = [
        GeneratedToken(11, "n", "judged", 0.5, -0.5, top),
        GeneratedToken(12, "é", "target", None, -2.0, []),
    ]
    assert final
    assert chunk == Chunk("né", tokens, 5, 9, "length", record)


def test_a_response_with_text_alone() -> None:
    """Ids come with every response; without their provenance they are not used."""
    chunk, final = read_response(
        response(
            text_output=("BYTES", ["a"]),
            finish_reason=("BYTES", [""]),
            output_ids=("INT32", [7]),
            provenance=("BYTES", []),
            judge_scores=("FP32", [0.5]),
        )
    )
    assert not final
    assert chunk == Chunk("a", [], None, None, None, None)


def test_an_empty_final_response_carries_nothing() -> None:
    assert read_response(response(final=True)) == (None, True)


def test_a_refusal_is_an_error_in_the_servers_words() -> None:
    with pytest.raises(JudgeClientError, match=r"^max_tokens: 0 must be at least 1$"):
        read_response(response(error="in ensemble 'ensemble', max_tokens: 0 must be\n at least 1"))


def test_triton_names_are_taken_off_a_message() -> None:
    inner = "Failed to process the request(s) for model instance 'x_0_0', message: E: no\n  line"
    assert plain(f"in ensemble 'ensemble', {inner}") == "E: no\n  line"
    assert plain("in ensemble 'ensemble', rule: unknown") == "rule: unknown"
    assert plain("Request for unknown model: 'x'") == "Request for unknown model: 'x'"


def test_an_answer_is_the_sum_of_its_chunks() -> None:
    answer = Answer()
    answer.add(Chunk("a", [GeneratedToken(1, "a", "target", None)], 4, 1, None, None))
    answer.add(Chunk("", [], None, None, None, None))
    answer.add(
        Chunk("bc", [GeneratedToken(2, "bc", "aligned", None)], 4, 2, "stop", {"num_spec_steps": 1})
    )
    tokens = [GeneratedToken(1, "a", "target", None), GeneratedToken(2, "bc", "aligned", None)]
    assert answer == Answer("abc", tokens, 4, 2, "stop", {"num_spec_steps": 1})


def pieces(*tokens: tuple[str, str], text: str | None = None) -> list[tuple[str | None, str]]:
    """What a chunk of these (text, provenance) pairs gives the painter."""
    made = [GeneratedToken(None, piece, origin, None) for piece, origin in tokens]
    whole = "".join(piece for piece, _ in tokens) if text is None else text
    return terminal.pieces(Chunk(whole, made, None, None, None, None))


def plain_text(runs: terminal.Runs) -> str:
    return "".join(text for text, _ in runs)


def test_without_colour_every_run_stands_between_marks() -> None:
    painter = terminal.Painter(colour=False)
    first = painter.paint(
        pieces(("a", "aligned"), ("b", "judged"), ("", "aligned"), ("c", "target"))
    )
    second = painter.paint(pieces(("d", "target"), ("e", "aligned"), ("f", "target")))
    assert plain_text(first + second + painter.close()) == "a⟦b⟧‹cd›e‹f›"
    assert plain_text(painter.close()) == ""


def test_an_answer_goes_into_a_pipe_as_it_is() -> None:
    """Regression: rich turned tabs into spaces, so a Makefile lost them."""
    out = Console(file=io.StringIO(), width=20)
    painted = terminal.Painter(colour=False).paint(pieces(text="all:\n\techo hi" * 2))
    terminal.write(out, painted, end="")
    assert isinstance(out.file, io.StringIO) and out.file.getvalue() == "all:\n\techo hi" * 2


def test_with_colour_every_run_has_a_style() -> None:
    painter = terminal.Painter(colour=True)
    painted = painter.paint(pieces(("a", "aligned"), ("b", "judged")))
    assert painted == [("a", "green"), ("b", "bold yellow")]
    assert plain_text(painter.close()) == ""


def test_text_of_a_server_that_does_not_say_is_plain() -> None:
    assert plain_text(terminal.Painter(colour=False).paint(pieces(text="so"))) == "so"


def test_the_line_under_an_answer() -> None:
    record = {"num_spec_steps": 2, "num_accepted_draft_tokens": 3, "num_judged_tokens": 1}
    drafted = Answer(num_output_tokens=5, record=record)
    plain_one = Answer(num_output_tokens=5, finish_reason="cancelled")
    assert speed_line([drafted], 2.0) == ("5 tokens, 2.5 tok/s, acceptance length 2.50, 1 judged")
    assert speed_line([plain_one], 2.0) == "5 tokens, 2.5 tok/s, cancelled"


def test_the_document_is_the_librarys_shape() -> None:
    tokens = [GeneratedToken(1, "a", "target", None), GeneratedToken(2, "b", "judged", 0.5)]
    answer = Answer("ab", tokens, 3, 2, "length", {"num_spec_steps": 1})
    assert document(["p", "never asked"], [answer], 0.5) == {
        "results": [
            {
                "prompt": "p",
                "text": "ab",
                "token_ids": [1, 2],
                "finish_reason": "length",
                "provenance": ["target", "judged"],
                "judge_scores": [None, 0.5],
                "speculative_decoding": {"num_spec_steps": 1},
            }
        ],
        "timing": {"seconds": 0.5, "tokens": 2, "tokens_per_s": 4.0},
    }


def test_the_legend_names_all_three(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.print_legend(Console(file=sys.stdout, no_color=True, width=140))
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        "aligned",
        "⟦judged⟧",
        "‹target›",
    ]


@pytest.mark.parametrize("url", ["127.0.0.1:8001", "localhost:1", "[::1]:8001", "a-b.c:65535"])
def test_addresses(url: str) -> None:
    assert check_address(url) == url


@pytest.mark.parametrize(
    "url", ["", "localhost", ":8001", "http://localhost:8001", "h:x", "h:0", "h:65536", "::1:80"]
)
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(JudgeClientError, match="url: "):
        check_address(url)


def closed_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return int(held.getsockname()[1])


@pytest.mark.parametrize("module", ["generate", "chat"])
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["-u", "localhost"], "url: 'localhost' is not HOST:PORT"),
        (["-u", "CLOSED"], "no server answers there"),
        (["--nonsense"], "No such option"),
        (["--max-tokens", "many"], "Invalid value for '--max-tokens'"),
        (["--timeout", "0"], "Invalid value for '--timeout'"),
    ],
)
def test_a_users_mistake_is_one_line(module: str, arguments: list[str], complaint: str) -> None:
    arguments = [f"127.0.0.1:{closed_port()}" if a == "CLOSED" else a for a in arguments]
    if module == "generate":
        arguments += ["--prompt", "x"]
    done = subprocess.run(
        [sys.executable, "-m", f"clients.{module}", *arguments],
        cwd=ROOT,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert complaint in done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"{module}: ")


def test_a_conversation_keeps_only_the_turns_that_were_answered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A refused turn is reported and forgotten; /new starts over; end of input ends it."""
    typed = iter(["one", "", "too long", "two", "/new", "three"])
    monkeypatch.setattr("builtins.input", lambda _: next(typed))
    asked: list[list[str]] = []

    def send(history: list[dict[str, str]]) -> str:
        asked.append([turn["content"] for turn in history])
        if history[-1]["content"] == "too long":
            raise terminal.TurnRefused("it does not fit; /new starts over")
        if history[-1]["content"] == "three":
            raise KeyboardInterrupt
        return history[-1]["content"].upper()

    out = Console(file=io.StringIO(), width=80)
    with pytest.raises(KeyboardInterrupt):
        terminal.converse(out, send)
    assert asked == [["one"], ["one", "ONE", "too long"], ["one", "ONE", "two"], ["three"]]
    assert isinstance(out.file, io.StringIO)
    assert out.file.getvalue().endswith("it does not fit; /new starts over\n")
