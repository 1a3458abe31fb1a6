"""The page in Chromium, driven by Playwright."""

import json
import shutil
from itertools import pairwise

import pytest

from gpt2lab.app import page
from tests.app.conftest import StepCounter, wait_until

pytestmark = pytest.mark.slow  # starts a browser

TIMEOUT = 60_000  # milliseconds
MARKUP = "<img src=x onerror=document.title='x'> {{value}} ${1+1} `"

# Contrast of text with its background, as WCAG 2.2 defines it, for every colour of the legend.
CONTRAST = """() => {
  const light = (text) => {
    const parts = text.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255);
    const [r, g, b] = parts.map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  return [...document.querySelectorAll(".legend span")].map((span) => {
    const style = getComputedStyle(span);
    const [a, b] = [light(style.color), light(style.backgroundColor)].sort((x, y) => y - x);
    return (a + 0.05) / (b + 0.05);
  });
}"""


@pytest.fixture(scope="module")
def browser():
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no browser: install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--no-proxy-server", "--disable-dev-shm-usage"]
        browser = playwright.chromium.launch(executable_path=program, args=options)
        yield browser
        browser.close()


class Tab:
    """A browser tab, with the errors and requests of its page."""

    def __init__(self, browser, address, **options):
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.errors, self.requests = [], []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(address)
        self.page.wait_for_selector("#write", timeout=TIMEOUT)

    def write(self, prompt=None):
        if prompt is not None:
            self.page.fill("#prompt textarea", prompt)
        self.page.click("#write")

    def tokens(self, side=0):
        return self.page.locator(f"#text-{side} .token")

    def wait_for_tokens(self, count, side=0):
        self.page.wait_for_function(
            f"document.querySelectorAll('#text-{side} .token').length >= {count}", timeout=TIMEOUT
        )

    def wait_for_message(self, text):
        script = f"document.querySelector('#message').innerText.includes({json.dumps(text)})"
        self.page.wait_for_function(script, timeout=TIMEOUT)


@pytest.fixture
def tab(browser, served):
    address, counter = served
    tabs = []

    def open_tab(**options):
        tabs.append(Tab(browser, address, **options))
        return tabs[-1]

    yield open_tab
    counter.allow(None)
    for tab in tabs:
        tab.context.close()
        assert not tab.errors
        assert not [url for url in tab.requests if not url.startswith((address, "data:", "blob:"))]
        assert not [url for url in tab.requests if url.endswith((".woff", ".woff2", ".ttf"))]


def test_both_models_generate_and_a_click_shows_the_most_likely_tokens(tab):
    one = tab()
    one.write(MARKUP)
    for side in (0, 1):
        one.wait_for_tokens(64, side)
        assert one.page.inner_text(f"#text-{side} .prompt").strip() == MARKUP
        assert "tokens/s" in one.page.inner_text(f"#rate-{side}")
        assert one.page.locator(f"#next-{side} .bar").count() in (8, 9)
        assert one.page.locator(f"#next-{side} .bar.sampled").count() == 1
    one.tokens(1).nth(4).click()
    assert "Token 5 " in one.page.inner_text("#which")
    assert one.page.locator(".token.chosen").count() == 2
    one.page.press("#text-1 .tokens", "ArrowRight")
    assert "Token 6 " in one.page.inner_text("#which")
    assert one.page.title() == "gpt2lab"  # the prompt's script did not run
    text = one.page.inner_text("body")
    assert "0.2612" in text
    assert "9.250" in text
    one.page.wait_for_selector("svg.marks, canvas.marks", timeout=TIMEOUT)


def test_tokens_appear_one_by_one_and_stop_stops_the_computation(tab, served, monkeypatch):
    monkeypatch.setattr(page, "UPDATE_SECONDS", 0)  # show every token, also if the next one is held back
    counter: StepCounter = served[1]
    one = tab()
    counter.allow(4)
    one.write("Once upon")
    one.wait_for_tokens(3)
    assert one.tokens().count() <= 4
    one.page.click("#stop")
    one.wait_for_message("Stopped")
    assert counter.stops(within=50)
    assert one.tokens().count() < 64
    counter.allow(None)
    one.write("Again")
    one.wait_for_tokens(64, 1)
    assert not one.page.inner_text("#message").strip()


def test_a_closed_tab_stops_the_computation(tab, served, monkeypatch):
    monkeypatch.setattr(page, "UPDATE_SECONDS", 0)
    counter: StepCounter = served[1]
    one = tab()
    counter.allow(3)
    one.write("Once upon")
    one.wait_for_tokens(2)
    one.page.close()
    assert counter.stops(within=50)


def test_two_tabs_at_once(tab, served):
    counter: StepCounter = served[1]
    first, second = tab(), tab()
    counter.allow(0)
    first.write("One")
    second.write("Two")
    assert wait_until(lambda: counter.waiting == 2)
    counter.allow(None)
    for one, prompt in ((first, "One"), (second, "Two")):
        one.wait_for_tokens(64, 0)
        one.wait_for_tokens(64, 1)
        assert one.page.inner_text("#text-0 .prompt") == prompt


def test_several_continuations_of_each_model(tab):
    one = tab(viewport={"width": 390, "height": 844})
    one.page.fill("#count input[type=number]", "3")
    one.page.press("#count input[type=number]", "Tab")
    one.write("Once upon")
    one.wait_for_tokens(64, "1-2")
    assert one.page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not one.page.is_visible("#text-0-3")
    texts = [one.page.inner_text(f"#text-0{row}") for row in ("", "-1", "-2")]
    assert len(set(texts)) == 3
    one.tokens("0-1").nth(4).click()
    assert one.page.locator("#text-0-1 .chosen, #text-1-1 .chosen").count() == 2
    assert one.page.locator(".token.chosen").count() == 2


def test_tick_labels_of_the_loss_chart_are_apart(tab, run):
    metrics = run / "metrics.jsonl"
    before = metrics.read_text()
    metrics.write_text("".join(json.dumps({"step": step, "train/loss": 5 + 1 / step}) + "\n" for step in range(1, 601)))
    try:
        one = tab(viewport={"width": 1280, "height": 900})
        one.page.wait_for_selector("svg.marks .role-axis-label text", timeout=TIMEOUT)
    finally:
        metrics.write_text(before)
    edges = one.page.evaluate("""() => [...document.querySelectorAll("svg.marks .role-axis-label")]
        .map((axis) => [...axis.querySelectorAll("text")]
            .filter((text) => text.textContent && text.getAttribute("opacity") !== "0")
            .map((text) => text.getBoundingClientRect()).map(({left, right, top}) => [left, right, top]))""")
    (steps,) = [labels for labels in edges if len({top for _, _, top in labels}) == 1]  # the x axis: all on one line
    assert len(steps) > 5
    assert min(right[0] - left[1] for left, right in pairwise(steps)) >= 4


def test_errors_are_shown_on_the_page(tab):
    one = tab()
    for prompt, key in (("", "prompt is empty"), ("a\0b", "NUL")):
        one.write(prompt)
        one.wait_for_message(key)
        assert "Traceback" not in one.page.inner_text("body")
    one.write("Once")
    one.wait_for_tokens(1)


def test_a_prompt_longer_than_the_window_is_cut_with_a_note(tab):
    one = tab()
    one.write("word " * 40)
    one.wait_for_tokens(1)
    one.page.wait_for_function("document.body.innerText.includes('block_size')", timeout=TIMEOUT)
    assert "Traceback" not in one.page.inner_text("body")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_readable_on_a_phone_in_light_and_dark(tab, scheme):
    one = tab(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    one.write("Once")
    one.wait_for_tokens(64)
    assert one.page.evaluate("document.documentElement.scrollWidth") <= 390
    contrasts = one.page.evaluate(CONTRAST)
    assert len(contrasts) == 5
    assert min(contrasts) >= 4.5, contrasts
