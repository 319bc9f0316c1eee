"""What a client may send, array by array; the arrays of responses; text streams by sequence."""

from __future__ import annotations

import json
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from judge_decoding.config import Deployment
from judge_decoding.decoding.contracts import Constraints, Sampling, TokenLogprobs
from judge_decoding.decoding.loop import Result, Update
from judge_decoding.decoding.sequence import AcceptanceRecord, Request, Token
from judge_decoding.errors import UserError
from judge_decoding.ranks import run_folder
from judge_decoding.serving import order
from judge_decoding.serving.detokenizer import Detokenizer
from judge_decoding.serving.reply import Reply
from judge_decoding.serving.request import Parameters, parameters, prompt, to_json
from judge_decoding.text import TextStream, Tokenizer


@pytest.fixture(scope="module")
def deployment(tiny_target: Path, tiny_draft: Path) -> Deployment:
    return Deployment.model_validate(
        {
            "name": "tiny",
            "target": {"model": str(tiny_target)},
            "draft": {"model": str(tiny_draft)},
            "limits": {"max_context": 64, "max_tokens": 50},
            "server": {"max_prompt_bytes": 100},
        },
        context={"folder": Path()},
    )


@pytest.fixture(scope="module")
def tokenizer(tiny_target: Path) -> Tokenizer:
    return Tokenizer(tiny_target)


def arrays(**values: Any) -> dict[str, np.ndarray]:
    """Arrays as a transport passes them: a batch of one."""
    kinds = {float: np.float32, int: np.int32, bool: bool, bytes: object}
    made = {}
    for name, value in values.items():
        items = value if isinstance(value, list) else [value]
        made[name] = np.array([items], kinds[type(items[0])])
    return made


def asked(deployment: Deployment, **values: Any) -> Request:
    return parameters(arrays(**values)).request([1, 2], deployment)


def test_nothing_given_takes_the_deployments(deployment: Deployment) -> None:
    request = asked(deployment)
    assert request == Request([1, 2], 50, deployment.default_acceptance(), Sampling(), text=False)
    assert request.acceptance.rule == "strict"


def test_everything_given_arrives(deployment: Deployment) -> None:
    values = {
        "max_tokens": 9,
        "min_tokens": 2,
        "stop_words": [b"one", b"", "zwölf".encode()],
        "temperature": 0.7,
        "top_k": 5,
        "top_p": 0.9,
        "seed": 11,
        "max_draft_len": 3,
        "acceptance_rule": b"judge",
        "judge_threshold": 0.99,
        "ignore_eos": True,
    }
    assert asked(deployment, **values) == Request(
        [1, 2],
        9,
        # The intended decimals, not float32's neighbours.
        deployment.default_acceptance(rule="judge", threshold=0.99),
        Sampling(0.7, 5, 0.9, 11),
        max_draft_len=3,
        stop=("one", "zwölf"),
        ignore_end=True,
        min_tokens=2,
        text=False,
    )


def test_aliases_and_the_habits_of_other_clients(deployment: Deployment) -> None:
    aliased = asked(deployment, min_length=4, num_draft_tokens=2)
    assert (aliased.min_tokens, aliased.max_draft_len) == (4, 2)
    assert asked(deployment, max_draft_len=1, num_draft_tokens=2).max_draft_len == 1
    greedy = asked(deployment, temperature=1.0, top_k=1)
    assert greedy.sampling.greedy and greedy.acceptance.rule == "strict"
    # A default of `strict` is greedy; with a temperature and no rule, it is lossless sampling.
    assert asked(deployment, temperature=1.0).acceptance.rule == "rejection"
    named = asked(deployment, temperature=1.0, acceptance_rule=b"strict")
    assert named.acceptance.rule == "strict"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_tokens": 0}, r"max_tokens: Input should be greater than or equal to 1 \(got 0\)"),
        ({"max_tokens": -1}, r"max_tokens: .*\(got -1\)"),
        ({"max_tokens": 51}, "max_tokens: 51 is more than the limit of 50"),
        ({"min_tokens": -1}, "min_tokens: "),
        ({"temperature": float("nan")}, "temperature: Input should be a finite number"),
        ({"temperature": float("inf")}, "temperature: "),
        ({"temperature": -0.5}, "temperature: "),
        ({"temperature": 100.5}, "temperature: .*less than or equal to 100"),
        ({"judge_threshold": -0.1}, "judge_threshold: .*greater than or equal to 0"),
        ({"seed": -1}, "seed: .*greater than or equal to 0"),
        ({"deadline_ms": 0}, "deadline_ms: .*greater than or equal to 1"),
        ({"stop_words": [b"a", "é".encode() * 513]}, "stop_words: one is longer than 1024 bytes"),
        ({"top_k": -1}, "top_k: "),
        ({"top_p": 0.0}, "top_p: "),
        ({"top_p": 1.5}, "top_p: "),
        ({"judge_threshold": 1.1}, "judge_threshold: .*less than or equal to 1"),
        ({"judge_threshold": float("nan")}, "judge_threshold: "),
        ({"acceptance_rule": b"x"}, "acceptance_rule: .*'none', 'strict'.*got 'x'"),
        ({"max_draft_len": 9}, "max_draft_len: 9 is more than the deployment's 8"),
        ({"max_draft_len": -1}, "max_draft_len: "),
        ({"stop_words": [b"a"] * 33}, "stop_words: .*at most 32"),
        ({"stop_words": [b"a" * 1025]}, "stop_words: one is longer than 1024 bytes"),
        ({"stop_words": [b"a", b"\xc3"]}, "stop_words: not valid UTF-8 at byte 0"),
        ({"beam_width": 2}, "beam_width: unknown key"),
        ({"seed": [1, 2]}, "seed: 2 values; give one"),
    ],
)
def test_bad_parameters_are_refused_by_name(
    deployment: Deployment, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        asked(deployment, **values)


@pytest.mark.parametrize(
    "values",
    [
        {"max_tokens": 1},
        {"max_tokens": 50},
        {"min_tokens": 0},
        {"temperature": 100.0},
        {"temperature": 0.0},
        {"top_k": 0},
        {"top_p": 1.0},
        {"top_p": 1e-6},
        {"seed": 0},
        {"judge_threshold": 0.0},
        {"judge_threshold": 1.0},
        {"max_draft_len": 0},
        {"max_draft_len": 8},
        {"stop_words": [b"a"] * 32},
        {"stop_words": ["é".encode() * 512]},
        {"deadline_ms": 1},
    ],
)
def test_bounds_themselves_are_allowed(deployment: Deployment, values: dict[str, Any]) -> None:
    given = parameters(arrays(**values))
    given.request([1], deployment)
    ((name, value),) = values.items()
    if name != "stop_words":
        assert getattr(given, name) == value
    assert given.model_fields_set == {name}


def test_sampling_options_arrive(deployment: Deployment, tokenizer: Tokenizer) -> None:
    """Regression (tensorrtllm_backend#84): none of these was there."""
    values = {
        "repetition_penalty": 1.2,
        "presence_penalty": -0.5,
        "frequency_penalty": 2.0,
        "min_p": 0.25,
        "logit_bias": b'{"65": -100, "9": 1.5}',
        "bad_words": [b"ab", b""],
        "end_id": 7,
        "stop_token_ids": [3, 4],
        "temperature": 0.5,
        "logprobs": 4,
    }
    request = parameters(arrays(**values)).request([1], deployment, tokenizer)
    words = (tuple(tokenizer.encode("ab", special=False)),)
    words += (tuple(tokenizer.encode(" ab", special=False)),)
    assert request.sampling == Sampling(
        0.5,
        min_p=0.25,
        constraints=Constraints(
            repetition=1.2,
            presence=-0.5,
            frequency=2.0,
            bias=((9, 1.5), (65, -100.0)),
            bad_words=words,
        ),
        logprobs=4,
    )
    assert (request.end_id, request.stop_ids) == (7, (3, 4))


def test_a_stop_string_that_is_a_special_token_matches_its_id(
    deployment: Deployment, tiny_target: Path
) -> None:
    """Regression (vllm#4180): special tokens have no text, so the string never matched."""
    tokenizer = Tokenizer(tiny_target)
    tokenizer._fast.add_special_tokens(["<|im_end|>"])
    tokenizer._fast.add_tokens(["plain"])
    asked = parameters(arrays(stop_words=[b"<|im_end|>", b"a", b"plain"]))
    number = tokenizer.size - 2
    assert asked.request([1], deployment, tokenizer).stop_ids == (number,)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"logit_bias": b"[]"}, "logit_bias: Expected `object`"),
        ({"logit_bias": b'{"a": 1}'}, "logit_bias: "),
        ({"logit_bias": b'{"1": 101}'}, "logit_bias.1: "),
        (
            {"logit_bias": json.dumps(dict.fromkeys(range(1025), 1)).encode()},
            "logit_bias: 1025 tok",
        ),
        ({"repetition_penalty": 0.0}, "repetition_penalty: "),
        ({"presence_penalty": 2.1}, "presence_penalty: "),
        ({"min_p": 1.5}, "min_p: "),
        ({"logprobs": 21}, "logprobs: "),
        ({"logprobs": -1}, "logprobs: "),
        ({"n": 2}, "n: 2 answers; a request has one, so send one request per answer"),
        ({"bad_words": [b"a"]}, "bad_words: they need a tokenizer"),
    ],
)
def test_options_out_of_bounds_are_named(
    deployment: Deployment, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError) as refused:
        asked(deployment, **values)
    assert str(refused.value).startswith(message)


def test_what_is_not_asked_for_is_not_returned() -> None:
    """Except for the counts, which load generators and Triton's OpenAI front end always need."""
    assert Parameters().model_dump() == {
        "max_tokens": None,
        "min_tokens": 0,
        "stop_words": [],
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "seed": 0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "logit_bias": {},
        "bad_words": [],
        "end_id": None,
        "stop_token_ids": [],
        "logprobs": None,
        "n": 1,
        "max_draft_len": None,
        "acceptance_rule": None,
        "judge_threshold": None,
        "ignore_eos": False,
        "deadline_ms": None,
        "stream": False,
        "return_provenance": False,
        "return_judge_scores": False,
        "return_acceptance_record": False,
        "return_num_input_tokens": True,
        "return_num_output_tokens": True,
        "stop": False,
    }


def test_how_many_tokens_an_answer_has(deployment: Deployment) -> None:
    """The requested number, else 128, or the deployment's limit if that is less."""
    for limit, asked_for, expected in (
        (50, 7, 7),
        (50, None, 50),
        (500, None, 128),
        (500, 400, 400),
    ):
        limited = deployment.override(limits={"max_tokens": limit})
        given = Parameters(max_tokens=asked_for)
        assert given.request([1], limited).max_tokens == expected


@pytest.mark.parametrize(
    ("own_ms", "deployment_ms", "timeout_us", "expected"),
    [
        (None, None, 0, None),
        (1500, None, 0, 1.5),
        (None, 2500, 0, 2.5),
        (1500, 2500, 0, 1.5),
        (3500, 2500, 0, 2.5),
        (None, None, 750_000, 0.75),
        (1500, None, 750_000, 0.75),
        (500, None, 750_000, 0.5),
        (None, 2500, 750_000, 0.75),
        (None, 500, 750_000, 0.5),
        (3500, 2500, 4_000_000, 2.5),
        (1, None, 0, 0.001),
        (None, None, 1, 1e-6),
    ],
)
def test_the_earliest_deadline_counts_in_seconds(
    deployment: Deployment,
    own_ms: int | None,
    deployment_ms: int | None,
    timeout_us: int,
    expected: float | None,
) -> None:
    limited = deployment.override(server={"deadline_ms": deployment_ms})
    assert Parameters(deadline_ms=own_ms).deadline_s(limited, timeout_us) == expected


def test_documents_are_one_line_of_json_proper() -> None:
    assert to_json({"a": [1, 0.5, None], "b": "é"}) == b'{"a": [1, 0.5, null], "b": "\\u00e9"}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"score": float("nan")})


def test_an_array_of_any_shape_holds_its_values(deployment: Deployment) -> None:
    for shape in ((1, 1), (1,), ()):
        seed = {"seed": np.full(shape, 7, np.int32)}
        assert parameters(seed).seed == 7
    words = np.array([[b"a"], [b"b"]], object)
    assert parameters({"stop_words": words}).stop_words == ["a", "b"]
    with pytest.raises(UserError, match="seed: 0 values; give one"):
        parameters({"seed": np.zeros((0,), np.int32)})


def test_a_seed_is_an_unsigned_64_bit_number_within_torchs(deployment: Deployment) -> None:
    seed = {"seed": np.array([[2**63 - 1]], np.uint64)}
    assert parameters(seed).request([1], deployment).sampling.seed == 2**63 - 1
    with pytest.raises(UserError, match="seed: "):
        parameters({"seed": np.array([[2**63]], np.uint64)})


def test_prompts_are_raw_text_a_turn_or_a_conversation(
    deployment: Deployment, tokenizer: Tokenizer
) -> None:
    def ids(**values: Any) -> tuple[list[int], str]:
        return prompt(arrays(**values), tokenizer, deployment)

    turn = [{"role": "user", "content": "Hi"}]
    assert ids(text_input=b"Hi") == (tokenizer.encode("Hi"), "Hi")
    assert ids(text_input=b"Hi", chat=False) == (tokenizer.encode("Hi"), "Hi")
    assert ids(text_input=b"Hi", chat=True) == (tokenizer.chat(turn), "Hi")
    both = ids(text_input=b"ignored", messages=json.dumps(turn).encode())
    assert both == (tokenizer.chat(turn), "[user] Hi\n[assistant] ")


def test_without_a_chat_template_a_client_is_told_what_to_send(
    deployment: Deployment, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer.json").write_text((tokenizer.folder / "tokenizer.json").read_text())
    turn = arrays(text_input=b"Hi", chat=True)
    messages = arrays(messages=json.dumps([{"role": "user", "content": "Hi"}]).encode())
    with pytest.raises(UserError, match=r"has no chat template; send text_input without chat$"):
        prompt(turn, Tokenizer(tmp_path), deployment)
    with pytest.raises(UserError, match=r"template; send text_input instead of messages$"):
        prompt(messages, Tokenizer(tmp_path), deployment)
    raw = Tokenizer(tmp_path, "none")
    assert prompt(turn, raw, deployment) == (tokenizer.encode("Hi"), "Hi")
    with pytest.raises(
        UserError, match=r"chat_template: none; send text_input instead of messages$"
    ):
        prompt(messages, raw, deployment)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text_input": b""}, "prompt: text_input is empty"),
        ({}, "prompt: text_input is missing; give a text or messages"),
        ({"text_input": b"x" * 101}, "101 bytes are more than server.max_prompt_bytes 100"),
        ({"text_input": b"x" * 60, "messages": b"y" * 60}, "120 bytes"),
        ({"text_input": b"\xff"}, "text_input: not valid UTF-8 at byte 0"),
        ({"messages": b"\xff"}, "messages: not valid UTF-8 at byte 0"),
        ({"messages": b"["}, "messages: Input data was truncated"),
        ({"messages": b"[" * 90}, r"messages: Expected `object`, got `array` - at `\$\[0\]`"),
        ({"messages": b"[]"}, "messages: the list is empty"),
        (
            {"messages": b'[{"role": "user"}]'},
            r"messages: Object missing required field `content` - at `\$\[0\]`",
        ),
        ({"messages": b"{}"}, "messages: Expected `array`, got `object`"),
        ({"messages": b'[{"role": "a", "content": 1}]'}, r"got `int` - at `\$\[0\]\.content`"),
    ],
)
def test_bad_prompts_are_refused(
    deployment: Deployment, tokenizer: Tokenizer, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        prompt(arrays(**values), tokenizer, deployment)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("[" + "1," * 400_000 + "1]", "Expected `object`, got `int` - at `$[0]`"),
        ("[" * 110_000, "Expected `object`, got `array` - at `$[0]`"),
        ('[{"role": "u", "content": ' * 30_000, "Expected `str`, got `array` - at `$[0].content`"),
        (json.dumps([{"role": "u", "content": ""}] * 2001), "2001 turns; give at most 2000"),
        (
            json.dumps([{"k" * 900_000: ""}]),
            f"Object contains unknown field `{'k' * 166}... (900044 characters)",
        ),
    ],
    ids=lambda value: value[:20],
)
def test_a_megabyte_of_messages_is_refused_before_the_template(
    deployment: Deployment, tokenizer: Tokenizer, messages: str, message: str
) -> None:
    """Regression: admission stood still for seconds, and errors were megabytes (issue 16)."""
    with pytest.raises(UserError) as refused:
        prompt(arrays(messages=messages.encode()), tokenizer, long_texts(deployment))
    assert str(refused.value) == f"messages: {message}"


def test_a_chat_has_the_templates_own_special_tokens_only(
    deployment: Deployment, llama_like: Path
) -> None:
    """A raw text gets the tokenizer's BOS; a chat template writes its own."""
    tokenizer = Tokenizer(llama_like)
    roomy = long_texts(deployment)
    turn = [{"role": "user", "content": "Hi"}]
    messages = json.dumps(turn).encode()
    raw, chat, conversation = (
        prompt(arrays(**values), tokenizer, roomy)[0]
        for values in (
            {"text_input": b"Hi"},
            {"text_input": b"Hi", "chat": True},
            {"messages": messages},
        )
    )
    assert raw[0] == 256 and raw.count(256) == 1 and len(raw) == 3
    assert chat == conversation == tokenizer.chat(turn)
    assert chat.count(256) == 1


def test_the_largest_prompt_is_taken(deployment: Deployment, tokenizer: Tokenizer) -> None:
    """The bytes of both texts count together; the loop itself reports what it cannot hold."""
    assert prompt(arrays(text_input=b"x" * 100), tokenizer, deployment)[1] == "x" * 100
    turn = json.dumps([{"role": "u", "content": "x"}]).encode()
    rest = 100 - len(turn)
    both = {"text_input": b"y" * rest, "messages": turn}
    assert prompt(arrays(**both), tokenizer, deployment)[1] == "[u] x\n[assistant] "
    with pytest.raises(UserError, match="101 bytes are more than"):
        prompt(arrays(**both | {"text_input": b"y" * (rest + 1)}), tokenizer, deployment)


@pytest.mark.parametrize("extra", [0, 1])
def test_a_text_is_counted_where_its_bytes_are_more_than_a_context_of_long_tokens(
    deployment: Deployment, tiny_target: Path, extra: int
) -> None:
    tokenizer = Counted(tiny_target)
    text = b"x" * (16 * 64 + extra)
    if not extra:  # tokenized as a whole; the loop reports its length
        ids, _ = prompt(arrays(text_input=text), tokenizer, long_texts(deployment))
        assert len(ids) == 1024 and tokenizer.lengths == [1024]
        return
    with pytest.raises(UserError, match="more than 64 tokens do not fit"):
        prompt(arrays(text_input=text), tokenizer, long_texts(deployment))
    assert tokenizer.lengths == [1024]


class Counted(Tokenizer):
    """Records the length of every text that it gets."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.lengths: list[int] = []

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        self.lengths.append(len(text))
        return super().encode(text, special=special)


def long_texts(deployment: Deployment) -> Deployment:
    """The same deployment without the bound on bytes."""
    return deployment.override(server={"max_prompt_bytes": 1_000_000})


@pytest.mark.parametrize("character", ["x", "ü", "🙂"])
@pytest.mark.parametrize("how", ["raw", "chat", "messages"])
def test_what_is_far_too_long_is_refused_after_its_first_bytes(
    deployment: Deployment, tiny_target: Path, character: str, how: str
) -> None:
    """Regression: 1 MB was tokenized to its end, for seconds, then refused; others waited."""
    tokenizer = Counted(tiny_target)
    text = character * (900_000 // len(character.encode()))
    values: dict[str, Any] = {"text_input": text.encode(), "chat": how == "chat"}
    if how == "messages":
        turns = [{"role": "user", "content": text}]
        values = {"messages": json.dumps(turns, ensure_ascii=False).encode()}
    with pytest.raises(UserError) as refused:
        prompt(arrays(**values), tokenizer, long_texts(deployment))
    assert str(refused.value) == (
        "prompt: more than 64 tokens do not fit the context of 64 with an answer; "
        "shorten it or raise limits.max_context"
    )
    # 16 bytes for each of 64 tokens; here a byte is a token.
    assert len(tokenizer.lengths) == 1 and tokenizer.lengths[0] <= 16 * 64


def test_a_long_text_of_few_tokens_is_not_too_long(
    deployment: Deployment, tiny_target: Path, tmp_path: Path
) -> None:
    """Some tokens are long, so tokens count and not bytes. A cut hardly changes their number."""
    document = json.loads((tiny_target / "tokenizer.json").read_text())
    for number in range(5):  # 2, 4, ... 32 times x is one token
        piece = "x" * 2**number
        document["model"]["merges"].append([piece, piece])
        document["model"]["vocab"][2 * piece] = 256 + number
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    tokenizer = Tokenizer(tmp_path)
    for tokens in (60, 120):  # 120 do not fit, as the loop reports, but are not far too many
        ids, _ = prompt(arrays(text_input=b"x" * 32 * tokens), tokenizer, long_texts(deployment))
        assert ids == [260] * tokens
    with pytest.raises(UserError, match="more than 64 tokens do not fit"):
        prompt(arrays(text_input=b"x" * 32 * 1000), tokenizer, long_texts(deployment))


SECRET = b"of this server"
TOKENS = [Token(5, "aligned", 0.25), Token(6, "judged", 0.75), Token(7, "target", None)]


def result(tokens: list[Token], reason: Any = "length") -> Result:
    return Result("", [t.id for t in tokens], reason, [], [], AcceptanceRecord())


def plain(response: dict[str, np.ndarray] | None) -> dict[str, Any]:
    assert response is not None
    values = {name: array.tolist() for name, array in response.items()}
    return values | {"detokenize": order.read(values["detokenize"][0], SECRET)}


def test_a_streaming_reply_says_what_is_new_and_counts_all() -> None:
    asked = Parameters(stream=True, return_provenance=True, return_judge_scores=True)
    request = Request([1, 2, 3], 9, stop=("x",))
    reply = Reply(4, SECRET, request, asked, frozenset({9}), b"before")
    first = plain(reply.add(Update(0, TOKENS, "", None, 4), None))
    assert np.isnan(first.pop("judge_scores")[2])
    assert first == {
        "detokenize": {
            "sequence": 4,
            "at": 0,
            "ids": [5, 6, 7],
            "stop": ["x"],
            "min_tokens": 0,
            "prompt": [1, 2, 3],
            "finish": "",
            "ended": False,
            "before": "before",
            "token_texts": True,
        },
        "output_ids": [5, 6, 7],
        "finish_reason": [b""],
        "num_input_tokens": [3],
        "num_output_tokens": [3],
        "acceptance_rate": [0.5],
        "total_accepted_draft_tokens": [2],
        "total_draft_tokens": [4],
        "provenance": [b"aligned", b"judged", b"target"],
        "speculative_decoding": [b""],
        "token_logprobs": [],
        "top_logprobs": [b""],
    }
    tail = [Token(9, "target", None)]
    last = plain(reply.add(Update(0, tail, "", "stop"), result(tail, "stop")))
    assert last["detokenize"]["at"] == 3
    assert last["detokenize"]["before"] == ""
    assert last["detokenize"]["stop"] == []  # said once, since there may be 32 kB of them
    assert last["detokenize"]["finish"] == "stop"
    assert last["detokenize"]["ended"] is True
    assert last["finish_reason"] == [b"stop"]
    assert last["num_output_tokens"] == [4]
    assert last["output_ids"] == [9]
    assert set(last) - {"judge_scores"} == set(first)


def test_a_reply_has_log_probabilities_per_token() -> None:
    top = TokenLogprobs(-0.5, [(5, -0.5), (6, -1.25)]), TokenLogprobs(-9999.0, [])
    tokens = [Token(5, "aligned", None, top[0]), Token(7, "target", None, top[1])]
    texts = {5: " a", 6: "b"}
    reply = Reply(1, SECRET, Request([1], 9), Parameters(logprobs=2), token_text=texts.__getitem__)
    only = plain(reply.add(Update(0, tokens, "", "length"), result(tokens)))
    assert only["token_logprobs"] == [-0.5, -9999.0]
    assert json.loads(only["top_logprobs"][0]) == [
        [{"id": 5, "token": " a", "logprob": -0.5}, {"id": 6, "token": "b", "logprob": -1.25}],
        [],
    ]
    alone = Reply(1, SECRET, Request([1], 9), Parameters(logprobs=0))
    only = plain(alone.add(Update(0, tokens, "", "length"), result(tokens)))
    assert (only["token_logprobs"], only["top_logprobs"]) == ([-0.5, -9999.0], [b""])


def test_a_reply_that_does_not_stream_is_one_response() -> None:
    reply = Reply(1, SECRET, Request([1], 9), Parameters(return_acceptance_record=True))
    assert reply.add(Update(0, TOKENS, "", None, 2), None) is None
    only = plain(reply.add(Update(0, TOKENS[:1], "", "length", 1), result(TOKENS)))
    assert only["output_ids"] == [5, 6, 7, 5]
    assert only["provenance"] == only["judge_scores"] == []
    assert only["total_draft_tokens"] == [3]
    assert json.loads(only["speculative_decoding"][0]) == AcceptanceRecord().to_dict()


def test_a_stream_may_send_what_several_rounds_emitted() -> None:
    """The first round is sent at once, then every third; the last response has the rest."""
    reply = Reply(1, SECRET, Request([1], 99), Parameters(stream=True), stream_interval=3)
    rounds = [[Token(i, "aligned", None), Token(10 + i, "target", None)] for i in range(6)]
    sent = [reply.add(Update(0, tokens, "", None, 2), None) for tokens in rounds]
    assert [i for i, response in enumerate(sent) if response is not None] == [0, 3]
    assert plain(sent[0])["output_ids"] == [0, 10]
    assert plain(sent[3])["output_ids"] == [1, 11, 2, 12, 3, 13]
    assert plain(sent[3])["detokenize"]["ids"] == [1, 11, 2, 12, 3, 13]
    assert plain(sent[3])["detokenize"]["at"] == 2
    assert plain(sent[3])["num_output_tokens"] == [8]
    last = plain(reply.add(Update(0, TOKENS[:1], "", "length", 2), result(TOKENS)))
    assert last["output_ids"] == [4, 14, 5, 15, 5]
    assert last["finish_reason"] == [b"length"]
    assert last["total_draft_tokens"] == [14]


def test_an_end_token_that_does_not_count_has_text() -> None:
    end = [Token(9, "target", None)]
    for changes in ({"ignore_end": True}, {"min_tokens": 1}):
        reply = Reply(1, SECRET, Request([1], 9, **changes), Parameters(), frozenset({9}))
        last = plain(reply.add(Update(0, end, "", "stop"), result(end, "stop")))
        assert last["detokenize"]["ended"] is False


def test_text_comes_out_as_the_loops_own_stream_would(tokenizer: Tokenizer) -> None:
    """Two interleaved sequences, characters of several bytes, a stop string over three tokens."""
    texts = {1: "Zürich → 東京 and so", 2: "one two END"}
    stops: dict[int, tuple[str, ...]] = {1: (), 2: ("END",)}
    ids = {n: tokenizer.encode(text) for n, text in texts.items()}
    streams = Detokenizer(tokenizer, capacity=4)
    got: dict[int, list[str]] = {1: [], 2: []}
    for i in range(0, 30, 3):
        for n in (1, 2):
            piece = ids[n][i : i + 3]
            if piece:
                got[n] += streams.push(n, piece, at=i, stop=stops[n], finish="", ended=False)
    for n in (1, 2):
        at = len(ids[n])
        got[n] += streams.push(n, ids[n][:1], at=at, stop=stops[n], finish="length", ended=True)
    assert "".join(got[1]) == texts[1]
    assert "".join(got[2]) == "one two "
    reference = TextStream(tokenizer)
    assert got[1][: len(ids[1])] == [reference.push(i) for i in ids[1]]
    assert len(streams) == 0


def test_text_held_back_is_given_at_the_end_but_not_after_a_cancel(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a EN")
    for finish, expected in (("length", "a EN"), ("cancelled", "a ")):
        streams = Detokenizer(tokenizer, capacity=4)
        texts = streams.push(1, ids, at=0, stop=["END"], finish="", ended=False)
        texts += streams.push(1, ids[:1], at=len(ids), stop=["END"], finish=finish, ended=True)
        assert "".join(texts) == expected


def push(streams: Detokenizer, number: int, ids: Sequence[int], at: int) -> str:
    return "".join(streams.push(number, ids, at=at, stop=[], finish="", ended=False))


def test_streams_of_clients_that_vanished_are_bounded(tokenizer: Tokenizer) -> None:
    """The one that has been silent longest is dropped, and none that is in use."""
    streams = Detokenizer(tokenizer, capacity=3)
    for n in range(1, 100):
        assert push(streams, 0, [65], at=n - 1) == tokenizer.decode([65])
        push(streams, n, [65], at=0)
        assert len(streams) <= 3
    with pytest.raises(UserError, match=r"tokens from 1 on of a sequence that was read up to 0;"):
        push(streams, 50, [65], at=1)


def test_an_order_that_comes_twice_changes_nothing(tokenizer: Tokenizer) -> None:
    """Direct callers of the core have signed orders, which must not work more than once."""
    streams = Detokenizer(tokenizer, capacity=3)
    ids = tokenizer.encode("Zürich")
    assert push(streams, 7, ids[:2], at=0) == "Z"  # and half a character
    with pytest.raises(UserError, match=r"^detokenize: tokens from 0 on .* read up to 2; it came"):
        push(streams, 7, ids[:2], at=0)
    assert push(streams, 7, ids[2:], at=2) == "ürich"


@pytest.mark.parametrize(
    "forge",
    [
        lambda signed: signed[64:],  # no signature
        lambda signed: b"0" * 64 + signed[64:],
        lambda signed: signed.replace(b'"sequence": 1', b'"sequence": 2'),
        lambda signed: order.sign(order.read(signed, SECRET), b"another secret"),
        lambda signed: signed[:64],
        lambda signed: signed[:-1],
        lambda signed: b"",
        lambda signed: b"\xff" * 200,
    ],
)
def test_only_what_the_server_signed_is_an_order(forge: Any) -> None:
    """Regression: anybody could send orders with a guessed number, and others' text was cut."""
    document = {"sequence": 1, "ids": [65]}
    signed = order.sign(document, SECRET)
    assert signed.isascii()  # it is a string in the JSON of a direct caller
    assert order.read(signed, SECRET) == document
    with pytest.raises(UserError) as refused:
        order.read(forge(signed), SECRET)
    assert str(refused.value) == (
        "detokenize: it is not signed by this server; call the model `ensemble`"
    )


def test_processes_of_a_server_agree_on_one_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first process that needs it makes it, in the run folder, readable by no other user."""
    monkeypatch.setenv(run_folder.FOLDER_VARIABLE, str(tmp_path))
    secret = run_folder.secret()
    assert len(secret) == 32
    assert run_folder.secret() == secret
    (path,) = tmp_path.iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    monkeypatch.setenv(run_folder.FOLDER_VARIABLE, str(tmp_path / "other"))
    (tmp_path / "other").mkdir()
    assert run_folder.secret() != secret
    monkeypatch.delenv(run_folder.FOLDER_VARIABLE)
    with pytest.raises(UserError) as refused:
        run_folder.secret()
    assert str(refused.value) == (
        "serve: JUDGE_DECODING_RUN_DIR is not set; start with `judge-decoding serve`"
    )
