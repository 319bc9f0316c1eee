"""The playground in a real browser, on the demo's server: `make browser` installs what it needs."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from clients.server import ServerProcess, serving
from judge_client.metrics import read_page
from judge_decoding.serving.openai.settings import ensemble_inputs
from tests.triton_world import wait_for

api = pytest.importorskip("playwright.sync_api", reason="no playwright; run `make browser`")

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.servers,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium; run `make browser`"),
]

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"
LIMIT_MS = 60_000
TOKENS = 48


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with serving(DEMO, openai=True) as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[api.Browser]:
    # Chromium's sandbox refuses to start for root, as whom containers run.
    with (
        api.sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"]) as launched,
    ):
        yield launched


@pytest.fixture
def page(browser: api.Browser, server: ServerProcess) -> Iterator[api.Page]:
    """The page of a server that has named its model. Its scripts may not raise."""
    raised: list[str] = []
    with browser.new_page() as opened:
        opened.set_default_timeout(LIMIT_MS)
        opened.on("pageerror", lambda error: raised.append(str(error)))
        opened.goto(f"{server.openai_url}/")
        api.expect(opened.locator("#model")).to_have_text("Model: demo", timeout=LIMIT_MS)
        yield opened
    assert raised == []


def ask(page: api.Page, prompt: str, *, threshold: str, tokens: int = TOKENS) -> None:
    page.fill("#prompt", prompt)
    page.fill("#threshold", threshold)
    page.fill("#max-tokens", str(tokens))
    page.click("#run")


def finish(page: api.Page) -> None:
    status = page.locator("#status")
    api.expect(status).to_have_text("Both answers are complete.", timeout=LIMIT_MS)


def figure(page: api.Page, column: str, name: str) -> float:
    text = page.inner_text(f'#{column} [data-figure="{name}"]')
    return float(text.removesuffix(" %"))


def test_the_form_shows_what_the_deployment_allows(page: api.Page) -> None:
    assert page.input_value("#rule") == "judge"
    assert page.input_value("#threshold") == "0.68"
    assert page.get_attribute("#draft-len", "max") == "3"
    assert page.get_attribute("#max-tokens", "max") == "1024"


def test_both_columns_stream_and_the_slider_changes_the_judged_share(page: api.Page) -> None:
    """At threshold 0 the judge accepts what it can; at 1 nothing beyond the standard rule."""
    ask(page, "Give me three tips for sleeping better.", threshold="0")
    for column in ("left", "right"):
        page.locator(f"#{column} .answer .token").first.wait_for()
    assert page.inner_text("#status") == "Both columns are streaming."
    finish(page)
    for column in ("left", "right"):
        assert figure(page, column, "tokens") == page.locator(f"#{column} .answer .token").count()
        assert figure(page, column, "speed") > 0
        rounds = page.get_attribute(f"#{column} .histogram", "aria-label") or ""
        counts = {int(k): int(n) for n, k in re.findall(r"(\d+) with (\d+) accepted", rounds)}
        mean = 1 + sum(k * n for k, n in counts.items()) / sum(counts.values())
        assert max(counts) <= 3 and figure(page, column, "length") == pytest.approx(mean, abs=0.005)
    assert page.locator("#left .judged").count() == 0 and figure(page, "left", "judged") == 0
    judged = page.locator("#right .answer .judged").count()
    assert judged > 0
    assert figure(page, "right", "judged") == pytest.approx(
        100 * judged / figure(page, "right", "tokens"), abs=0.05
    )
    # The texts part once in each column, at the same character.
    before = [
        page.evaluate(
            """id => {
                const answer = document.querySelector(`#${id} .answer`);
                const nodes = [...answer.childNodes];
                const fork = nodes.findIndex((node) => node.className === "fork");
                const texts = (part) => part.map((node) => node.textContent).join("");
                return [nodes.filter((node) => node.className === "fork").length,
                        texts(nodes.slice(0, fork)), texts(nodes.slice(fork + 1))];
            }""",
            column,
        )
        for column in ("left", "right")
    ]
    assert [count for count, *_ in before] == [1, 1]
    (_, left, left_rest), (_, right, right_rest) = before
    assert left[: len(right)] == right[: len(left)] and left + left_rest != right + right_rest

    ask(page, "Give me three tips for sleeping better.", threshold="1")
    finish(page)
    assert figure(page, "right", "judged") == 0


def open_why(page: api.Page) -> api.Locator:
    """Opens "why" for the first judged token of an answer; returns the token."""
    ask(page, "Write a two-line poem about the sea.", threshold="0")
    finish(page)
    token = page.locator("#right .answer .judged").first
    token.focus()
    page.keyboard.press("Enter")
    api.expect(page.locator("#why")).to_be_focused()
    return token


def test_enter_on_a_judged_token_says_why_and_escape_returns(page: api.Page) -> None:
    token = open_why(page)
    title = token.get_attribute("title") or ""
    assert re.search(r": drafted, and accepted by .*; the judge's score is [01]\.\d{3}", title)
    assert page.inner_text("#why-text").startswith(title)
    page.keyboard.press("Escape")
    api.expect(page.locator("#why")).to_be_hidden()
    api.expect(token).to_be_focused()


@pytest.mark.skipif(
    "logprobs" not in ensemble_inputs(), reason="`ensemble` has no log-probabilities"
)
def test_why_lists_the_targets_five_likeliest_tokens(page: api.Page) -> None:
    open_why(page)
    rows = page.locator("#why-rows tr")
    assert rows.count() == 5
    shares = [
        float(text.removesuffix(" %")) for text in rows.locator("td:last-child").all_inner_texts()
    ]
    assert shares == sorted(shares, reverse=True) and 0 < sum(shares) <= 100.1
    likeliest = rows.first.locator("td").first.inner_text()
    assert f"; the target would have written {likeliest}." in page.inner_text("#why-text")


def test_a_servers_error_is_a_sentence(page: api.Page) -> None:
    ask(page, "word " * 3000, threshold="0.5")
    error = page.locator("#error")
    api.expect(error).to_be_visible(timeout=LIMIT_MS)
    assert re.fullmatch(r"[^{}]*2048[^{}]*\.", error.inner_text())
    assert page.is_enabled("#run") and page.is_disabled("#stop")


def test_stop_frees_both_slots(page: api.Page, server: ServerProcess) -> None:
    def value(pattern: str) -> float:
        text = read_page(server.metrics_url, fresh=True)
        return sum(map(float, re.findall(rf"^judge_decoding_{pattern} (\S+)$", text, re.M)))

    cancelled = r'request_success_total\{.*="cancelled".*\}'
    before = value(cancelled)
    ask(page, "Tell me a very long story about a sailor.", threshold="0.68", tokens=1000)
    for column in ("left", "right"):
        page.locator(f"#{column} .answer .token").first.wait_for()
    page.click("#stop")
    api.expect(page.locator("#status")).to_have_text("Stopped.")
    wait_for(lambda: value(r"kv_slots_used\{.*\}") == 0, "free slots")
    assert value(cancelled) == before + 2
    assert page.is_hidden("#error")


def test_a_phone_needs_no_sideways_scrolling_and_dark_mode_is_dark(page: api.Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.emulate_media(color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(map(int, re.findall(r"\d+", background))) < 64
