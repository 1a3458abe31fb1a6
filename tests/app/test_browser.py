"""The page as a person has it: in Chromium, driven by Playwright."""

import shutil

import pytest

from tests.app.conftest import Counter

WAIT = 15_000  # milliseconds
ODD = "<img src=x onerror=document.title='x'> {{value}} ${1+1} `"

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
    """A visitor's tab, and what went wrong in it or left this machine."""

    def __init__(self, browser, address, **options):
        self.context = browser.new_context(**options)
        self.page = self.context.new_page()
        self.errors, self.asked = [], []
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address)
        self.page.wait_for_selector("#write", timeout=WAIT)

    def write(self, prompt=None):
        if prompt is not None:
            self.page.fill("#prompt textarea", prompt)
        self.page.click("#write")

    def tokens(self, side=0):
        return self.page.locator(f"#text-{side} .token")

    def wait_for_tokens(self, count, side=0):
        self.page.wait_for_function(f"document.querySelectorAll('#text-{side} .token').length >= {count}", timeout=WAIT)

    def message(self):
        self.page.wait_for_selector("#message .message", timeout=WAIT)
        return self.page.inner_text("#message")


@pytest.fixture
def tab(browser, served):
    address, counter = served
    counter.pause = 0.0
    tabs = []

    def open_tab(**options):
        tabs.append(Tab(browser, address, **options))
        return tabs[-1]

    yield open_tab
    counter.pause = 0.0
    for one in tabs:
        one.context.close()
        assert not one.errors
        assert not [url for url in one.asked if not url.startswith((address, "data:", "blob:"))]
        assert not [url for url in one.asked if url.endswith((".woff", ".woff2", ".ttf"))]


def test_both_write_and_a_click_shows_what_could_have_come(tab):
    one = tab()
    one.write(ODD)
    for side in (0, 1):
        one.wait_for_tokens(64, side)
        assert one.page.inner_text(f"#text-{side} .prompt").strip() == ODD
        assert "tokens/s" in one.page.inner_text(f"#rate-{side}")
        assert one.page.locator(f"#next-{side} .bar").count() in (8, 9)
        assert one.page.locator(f"#next-{side} .bar.taken").count() == 1
    one.tokens(1).nth(4).click()
    assert "Token 5 " in one.page.inner_text("#which")
    assert one.page.locator(".token.chosen").count() == 2
    one.page.press("#text-1 .tokens", "ArrowRight")
    assert "Token 6 " in one.page.inner_text("#which")
    assert one.page.title() == "gpt2lab"  # the prompt's script did not run
    text = one.page.inner_text("body")
    assert "0.2612" in text
    assert "9.250" in text
    one.page.wait_for_selector("svg.marks, canvas.marks", timeout=WAIT)


def test_tokens_come_one_by_one_and_stop_stops_the_computation(tab, served):
    counter: Counter = served[1]
    counter.pause = 0.1
    one = tab()
    one.write("Once upon")
    one.wait_for_tokens(3)
    assert one.tokens().count() < 30
    one.page.click("#stop")
    assert "Stopped" in one.message()
    assert counter.stands_still()
    assert one.tokens().count() < 60
    counter.pause = 0.0
    one.write("Again")
    one.wait_for_tokens(64, 1)
    assert not one.page.inner_text("#message").strip()


def test_a_closed_tab_stops_the_computation(tab, served):
    counter: Counter = served[1]
    counter.pause = 0.2
    one = tab()
    before = counter.steps
    one.write("Once upon")
    one.wait_for_tokens(2)
    one.page.close()
    assert counter.stands_still()
    assert counter.steps - before < 60


def test_two_tabs_at_once(tab, served):
    served[1].pause = 0.02
    first, second = tab(), tab()
    first.write("One")
    second.write("Two")
    for one, prompt in ((first, "One"), (second, "Two")):
        one.wait_for_tokens(64, 0)
        one.wait_for_tokens(64, 1)
        assert one.page.inner_text("#text-0 .prompt") == prompt


def test_bad_input_is_said_on_the_page(tab):
    one = tab()
    for prompt, says in (("", "the prompt is empty"), ("word " * 40, "block_size"), ("a\0b", "NUL")):
        one.write(prompt)
        one.page.wait_for_function(f"document.querySelector('#message').innerText.includes({says!r})", timeout=WAIT)
        assert "Traceback" not in one.page.inner_text("body")
    one.write("Once")
    one.wait_for_tokens(1)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_readable_on_a_phone_in_light_and_dark(tab, scheme):
    one = tab(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    one.write("Once")
    one.wait_for_tokens(64)
    assert one.page.evaluate("document.documentElement.scrollWidth") <= 390
    contrasts = one.page.evaluate(CONTRAST)
    assert len(contrasts) == 5
    assert min(contrasts) >= 4.5, contrasts
