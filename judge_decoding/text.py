"""Text at the edges: tokenizer, chat template, incremental detokenization, stop strings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from judge_client.echo import cut, shown
from judge_decoding.chat_template import SOURCE_BYTES, Template, TemplateTooMuch
from judge_decoding.checkpoint.folder import TOKENIZER_BYTES
from judge_decoding.checkpoint.gguf_file import SUFFIX, GgufFile
from judge_decoding.checkpoint.gguf_tokenizer import tokenizer_config, tokenizer_json
from judge_decoding.errors import UserError, shorten
from judge_decoding.files import read_bounded, read_object
from judge_decoding.tokenizer_patterns import check_patterns, is_panic

_REPLACEMENT = "\ufffd"
PROMPT_TAIL = 16
"""Tokens of the prompt that are decoded before the answer's."""
_WINDOW = 16
"""Tokens that may wait for the end of a character; the longest has four bytes."""
_SPECIAL_TOKENS = frozenset(
    f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
)
ChatTemplate = Literal["own", "none"]
"""Whether a user's turn is put in the model's own chat template, or is raw text."""
SET_CHAT_TEMPLATE = "say `chat_template: none` in the deployment (a prompt is then raw text)"
"""The fix for a model folder without a chat template that errors suggest by default."""


class Tokenizer:
    """A Hugging Face tokenizer folder (`tokenizer.json` and the chat template beside it), or a GGUF
    file (`folder` is then the file).

    Only `tokenizers` and jinja2 are used: importing transformers would cost seconds at every start.
    """

    def __init__(self, folder: Path, chat_template: ChatTemplate = "own") -> None:
        from tokenizers import Tokenizer as Fast

        self.folder = folder
        self.chat_template: ChatTemplate = chat_template
        self._gguf = GgufFile(folder) if folder.suffix == SUFFIX else None
        path = folder if self._gguf else folder / "tokenizer.json"
        if not path.exists():
            raise UserError(f"tokenizer: no file {path}")
        document = json.dumps(tokenizer_json(self._gguf)).encode() if self._gguf else None
        try:
            self._fast = Fast.from_buffer(document or read_bounded(path, TOKENIZER_BYTES))
        except BaseException as error:  # the library raises bare Exception, and panics
            if not isinstance(error, Exception) and not is_panic(error):
                raise
            raise UserError(f"tokenizer: {path} is not readable ({shorten(error)})") from None
        # Training may leave these settings in the file. They would cut and pad prompts;
        # transformers removes both as well.
        self._fast.no_truncation()
        self._fast.no_padding()
        check_patterns(self._fast, path)
        self._token_texts: dict[int, str] = {}

    @property
    def size(self) -> int:
        return int(self._fast.get_vocab_size(with_added_tokens=True))

    def special_id(self, text: str) -> int | None:
        """The id of the special token that is written `text`, if there is one."""
        number = self._fast.token_to_id(text)
        added = {} if number is None else self._fast.get_added_tokens_decoder()
        return number if number in added and added[number].special else None

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids; `special` adds the tokens that surround a raw text (Llama's BOS).

        A text that begins with the BOS itself gets no second one.
        """
        check_unicode("prompt", text)
        try:
            ids = list(self._fast.encode(text, add_special_tokens=special).ids)
        except BaseException as error:
            if not is_panic(error):
                raise
            raise UserError(
                f"tokenizer: a pattern of {self.folder} gives up on the text ({shorten(error)})"
            ) from None
        return ids[1:] if special and self._bos is not None and ids[:2] == [self._bos] * 2 else ids

    @cached_property
    def _bos(self) -> int | None:
        """The token that `encode` puts before a raw text; None if it puts none there."""
        around, bare = (self._fast.encode("a", add_special_tokens=one).ids for one in (True, False))
        return around[0] if around[:1] != bare[:1] else None

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens; bytes that are not (yet) valid UTF-8 become U+FFFD."""
        return str(self._fast.decode(list(ids), skip_special_tokens=True))

    def token_text(self, token: int) -> str:
        """One token's own text, with its leading blank; bytes of a split character become U+FFFD.

        A special token has its written form. A decoder may cut a text's leading blank, so the token
        is decoded twice in a row, and the first copy is cut off.
        """
        if token not in self._token_texts:
            once, twice = (
                str(self._fast.decode([token] * n, skip_special_tokens=False)) for n in (1, 2)
            )
            self._token_texts[token] = twice[len(once) :]
        return self._token_texts[token]

    @property
    def has_chat_template(self) -> bool:
        """Whether the folder has a chat template and the deployment uses it."""
        return self.chat_template == "own" and self._template is not None

    def turn(self, text: str, *, instead: str = SET_CHAT_TEMPLATE) -> list[int]:
        """The ids of a single user turn, formatted as the deployment's `chat_template` says.

        instead  the fix that the error suggests if the folder has no template
        """
        if self.chat_template == "none":
            return self.encode(text)
        return self.chat([{"role": "user", "content": text}], instead=instead)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, instead: str = SET_CHAT_TEMPLATE
    ) -> list[int]:
        """The ids of a conversation of {"role", "content"}, ready for the assistant's answer."""
        return self.encode(self.chat_text(messages, instead=instead), special=False)

    def chat_text(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        instead: str = SET_CHAT_TEMPLATE,
    ) -> str:
        """The conversation as the chat template writes it, special tokens included.

        UserError if there is no template (it suggests `instead`) or if the template refuses the
        messages.
        """
        if self.chat_template == "none":
            raise UserError(f"tokenizer: the deployment says chat_template: none; {instead}")
        template = self._template
        if template is None:
            raise UserError(f"tokenizer: {self.folder} has no chat template; {instead}")
        values = {**self._special_tokens, "add_generation_prompt": add_generation_prompt}
        try:
            return template.render(messages, **values)
        except TemplateTooMuch as error:
            raise UserError(f"tokenizer: the chat template of {self.folder}: {error}") from None
        except Exception as error:  # a template may raise anything, mostly for bad roles
            raise UserError(
                f"tokenizer: the chat template refused the messages: {shorten(error)}"
            ) from None

    @cached_property
    def _config(self) -> dict[str, Any]:
        if self._gguf is not None:
            return tokenizer_config(self._gguf)
        path = self.folder / "tokenizer_config.json"
        return read_object(path, "tokenizer") if path.exists() else {}

    @cached_property
    def _special_tokens(self) -> dict[str, str]:
        """Name -> text of the special tokens that a template sees; one that is not set is absent.

        As transformers' `from_pretrained` reads them: `special_tokens_map.json` goes before
        `tokenizer_config.json`, unless the latter describes its tokens (`added_tokens_decoder`).
        """
        path, values = self.folder / "tokenizer_config.json", dict(self._config)
        older = self.folder / "special_tokens_map.json"
        if self._gguf is None and "added_tokens_decoder" not in values and older.exists():
            values |= read_object(older, "tokenizer")
            path = older
        for key in ("extra_special_tokens", "model_specific_special_tokens"):
            if isinstance(named := values.get(key), dict):
                values |= named
        found = {}
        for name, value in values.items():
            text = value.get("content", value) if isinstance(value, dict) else value
            if name in _SPECIAL_TOKENS and not isinstance(text, str | None):
                raise UserError(f"tokenizer: {path} has {name} {shown(value)}, not a text")
            if name.endswith("_token") and isinstance(text, str):
                found[name] = text
        return found

    @cached_property
    def _template(self) -> Template | None:
        """The compiled template for conversations without tools; None if the folder has none."""
        try:
            source = self._template_source()
            return None if source is None else Template(source)
        except UserError:
            raise
        except (OSError, ValueError) as error:
            raise UserError(
                f"tokenizer: {self.folder} has a chat template that is not readable "
                f"({shorten(error)})"
            ) from None

    def _template_source(self) -> str | None:
        """The template as transformers picks it: a file goes before `tokenizer_config.json`, and of
        several named ones, in a list or in files, it is "default"."""
        named: dict[str, str] = {}
        if self._gguf is None:
            files = {"default": self.folder / "chat_template.jinja"}
            files |= {
                path.stem: path
                for path in sorted((self.folder / "additional_chat_templates").glob("*.jinja"))
            }
            named = {
                name: read_bounded(path, SOURCE_BYTES).decode()
                for name, path in files.items()
                if path.exists()
            }
        source = self._config.get("chat_template")
        if not named:
            if source is None or isinstance(source, str):
                return source
            if not isinstance(source, list):
                raise ValueError(f"it is {shown(source)}")
            pairs = [one for one in source if isinstance(one, dict)]
            named = {str(one.get("name")): str(one.get("template")) for one in pairs}
        if "default" not in named:
            names = cut(", ".join(sorted(named)))
            raise ValueError(f"none of its templates is named default, but {names}")
        return named["default"]

    def try_template(self) -> None:
        """UserError if the chat template writes no conversation at all; else a server would start,
        and then refuse each one."""
        if not self.has_chat_template:
            return
        system, user = ({"role": role, "content": "Hi"} for role in ("system", "user"))
        try:
            self.chat_text([user])
        except UserError as error:
            try:
                self.chat_text([system, user])
            except UserError:
                raise error from None


def check_unicode(what: str, text: str) -> None:
    """Raise UserError for lone surrogates, as in a command line that is not UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{what}: it holds {text[error.start]!a}, which is no character; is the input UTF-8?"
        ) from None


class TextStream:
    """Turns tokens into text as they come, and ends the text before a stop string.

    `push` returns only text that can no longer change. It holds back the bytes of an unfinished
    character, and anything that may begin a stop string. `flush` returns the rest, and looks for
    stop strings in it too: if a token ends in half a character, `push` holds back all of its text.
    Half a character that is never finished has no text.

    prompt  the ids that precede the tokens, or their end: a decoder that strips the first blank of
            a text would otherwise strip the answer's
    min_tokens  a stop string that is complete within so many tokens is text, as in vLLM
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        stop: Sequence[str] = (),
        prompt: Sequence[int] = (),
        min_tokens: int = 0,
    ) -> None:
        self._tokenizer = tokenizer
        self._min_tokens = min_tokens
        self._count = 0
        self._passed = 0  # characters of `_held` in which no stop string may end
        self._stop = tuple(stop)
        tail = list(prompt[-PROMPT_TAIL:])
        # Half a character at the prompt's end would become another text with the first token.
        self._ids: list[int] = [] if tokenizer.decode(tail).endswith(_REPLACEMENT) else tail
        self._start = 0  # decoding starts here; earlier ids are no longer needed
        self._read = len(self._ids)  # the text of earlier ids is in `_held` or was returned
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Return the text that this token settles; set `stopped` if it completes a stop string."""
        self._ids.append(token)
        self._count += 1
        new, end = self._unread(), len(self._ids)
        if new.endswith(_REPLACEMENT) and end - self._read >= _WINDOW:
            new, end = self._before_the_last(new)
        elif new.endswith(_REPLACEMENT):
            return ""
        if not new:
            return ""
        self._start, self._read = self._read, end
        self._held += new
        return self._settle()

    def _before_the_last(self, new: str) -> tuple[str, int]:
        """The most of `new` that later tokens cannot change, and the end of its ids.

        Bytes that are no text would otherwise be held back, and decoded again, up to the answer's
        end: each token would cost more than the one before.
        """
        for end in range(len(self._ids) - 1, self._read, -1):
            part = self._unread(end)
            if part and len(part) < len(new) and new.startswith(part):
                return part, end
        # Tokens without text after half a character, which is therefore never finished.
        return (new, len(self._ids)) if len(self._ids) - self._read >= 4 * _WINDOW else ("", 0)

    def _unread(self, end: int | None = None) -> str:
        """The text of the ids from `_read` to `end`.

        A token's text depends on its neighbour (leading spaces, split characters). So the ids are
        decoded together with the previous piece, and the text of that piece is cut off.
        """
        before = self._tokenizer.decode(self._ids[self._start : self._read])
        return self._tokenizer.decode(self._ids[self._start : end])[len(before) :]

    def _settle(self) -> str:
        if self._count <= self._min_tokens:
            self._passed = len(self._held)
        found = [
            at
            for stop in self._stop
            if (at := self._held.find(stop, max(0, self._passed - len(stop) + 1))) >= 0
        ]
        if found:
            self.stopped = True
            text, self._held = self._held[: min(found)], ""
            return text
        keep = max((_overlap(self._held, stop) for stop in self._stop), default=0)
        cut = len(self._held) - keep
        text, self._held = self._held[:cut], self._held[cut:]
        self._passed = max(0, self._passed - cut)
        return text

    def flush(self) -> str:
        """Return the rest, when no more tokens come; set `stopped` if it holds a stop string."""
        if self.stopped:
            return ""
        self._held += self._unread().rstrip(_REPLACEMENT)
        self._start, self._read = self._read, len(self._ids)
        text = self._settle() + self._held
        self._held = ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of `stop` that `text` ends with."""
    return next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)
