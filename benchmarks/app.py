"""The time to the first token in the browser, and many requests at once. The targets of `gpt2lab app`.

    python benchmarks/app.py            # some 3 minutes on two cores; the part first needs Chromium and Playwright

Two models of GPT-2 124M's shape with random weights: speed and memory do not need trained ones. The server runs in a
process of its own. Parts:

    first   from the click on Write to the first token in the browser, with the page's default settings
    crowd   rounds of 20 requests at the same moment, all of which must be answered in full; the server's memory after
            each (resident set, Linux)
    large   200 prompts each of 10 MB, of 120 kB and of the longest that is continued; the server's memory before and
            after
"""

import contextlib
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from gpt2lab import GPT2, GPT2Config
from gpt2lab.app.compare import MAX_CONTINUATIONS, MAX_PROMPT_CHARACTERS
from gpt2lab.bench import measure
from gpt2lab.bench.measure import Check
from gpt2lab.system import device as devices

REQUESTS, TOKENS = 20, 16
LARGE_PROMPTS = 200
MAX_GROWTH = 0.05  # of the server's memory between the end of the first round and the end of the last

# Clicks, and resolves with the milliseconds until a frame with the first new token has been drawn.
CLICK_AND_WAIT = """() => new Promise((resolve) => {
  const text = document.getElementById("text-0");
  let emptied = !text.querySelector(".token"); // of the previous text
  const start = performance.now();
  const observer = new MutationObserver(() => {
    const hasToken = Boolean(text.querySelector(".token"));
    emptied ||= !hasToken;
    if (!hasToken || !emptied) return;
    observer.disconnect();
    requestAnimationFrame(() => requestAnimationFrame(() => resolve(performance.now() - start)));
  });
  observer.observe(text, { childList: true, subtree: true, characterData: true });
  document.getElementById("write").click();
})"""

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # ignores proxies of the environment


@contextlib.contextmanager
def serve(precision: str, small: bool) -> Iterator[tuple[str, int]]:
    """Address and process id of a server with a 124M model, or one of a layer, and an untrained one."""
    config = GPT2Config(n_layer=1, n_head=2, n_embd=64) if small else GPT2Config()
    with tempfile.TemporaryDirectory() as folder:
        GPT2(config, generator=torch.Generator().manual_seed(0)).save_pretrained(folder)
        command = [sys.executable, "-m", "gpt2lab", "app", "--trained", folder, "--precision", precision]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                address = next(line.split()[0] for line in process.stdout if line.startswith("http"))
                yield address, process.pid
            finally:
                process.terminate()
                process.wait()


def time_first_token(address: str, clicks: int) -> Iterator[Check]:
    """Click several times, each time when the previous text is complete."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        yield Check("first token on the screen", "not measured: no browser")
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--no-proxy-server"])
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("#write")
        page.wait_for_timeout(2000)  # the charts
        seconds = []
        for _ in range(clicks):
            seconds.append(page.evaluate(CLICK_AND_WAIT) / 1000)
            for side in (0, 1):
                page.wait_for_function(f"document.querySelectorAll('#text-{side} .token').length >= 64", timeout=60_000)
            page.wait_for_timeout(500)
        rates = [page.inner_text(f"#rate-{side}") for side in (0, 1)]
        browser.close()
    figure = f"{statistics.median(seconds):.2f} s median, {max(seconds):.2f} s at most, of {clicks} clicks"
    yield Check("first token on the screen < 1 s after the click", figure, max(seconds) < 1)
    yield Check("rates that the page showed last", " | ".join(rates))


def send_many_requests(address: str, pid: int, rounds: int) -> Iterator[Check]:
    """`REQUESTS` visitors at once, in several rounds."""
    function = find_function(address)
    sizes = [resident_bytes(pid)]
    for number in range(1, rounds + 1):
        start = time.perf_counter()
        with ThreadPoolExecutor(REQUESTS) as visitors:
            counts = list(visitors.map(lambda seed: send_request(address, function, seed), range(REQUESTS)))
        seconds = time.perf_counter() - start
        sizes.append(resident_bytes(pid))
        complete = sum(count == [TOKENS, TOKENS] for count in counts)
        name = f"round {number}: {REQUESTS} requests at once, {TOKENS} tokens of each model"
        yield Check(name, f"{complete} answered in full, {seconds:.1f} s", complete == REQUESTS)
    growth = sizes[-1] / sizes[1] - 1
    figure = ", ".join(f"{size / 2**20:,.0f}" for size in sizes) + f" MiB before and after each round; {growth:+.1%}"
    yield Check(f"memory flat (below {MAX_GROWTH:+.0%} from round 1 to {rounds})", figure, growth < MAX_GROWTH)


def send_large_prompts(address: str, pid: int) -> Iterator[Check]:
    """`LARGE_PROMPTS` of each size, one after the other; those that are too large get one line."""
    function = find_function(address)
    for size in (MAX_PROMPT_CHARACTERS, 120_000, 10_000_000):
        prompt = "word " * (size // 5)
        answers = set()
        sizes = []
        for seed in range(LARGE_PROMPTS):
            try:
                answers.add(f"{sum(send_request(address, function, seed, prompt))} tokens")
            except (urllib.error.HTTPError, ConnectionError, urllib.error.URLError) as error:
                answers.add(f"{getattr(error, 'code', 'connection closed')}")
            sizes.append(resident_bytes(pid))
        growth = sizes[-1] / sizes[9] - 1
        after = [f"{sizes[n - 1] / 2**20:,.0f} after {n}" for n in (1, 10, LARGE_PROMPTS)]
        figure = f"MiB: {', '.join(after)} ({growth:+.1%}); answers: {', '.join(sorted(answers))}"
        yield Check(f"memory flat, prompts of {len(prompt):,} characters", figure, growth < MAX_GROWTH)


def find_function(address: str) -> int:
    """Number of the function that a click on Write calls."""
    config = json.load(_opener.open(f"{address}config"))
    write = next(part["id"] for part in config["components"] if part["props"].get("elem_id") == "write")
    return next(
        int(dependency["id"])
        for dependency in config["dependencies"]
        if [write, "click"] in [list(target) for target in dependency["targets"]]
    )


def send_request(address: str, function: int, seed: int, prompt: str = "Once upon a time") -> list[int]:
    """Send what the browser sends on a click; returns how many tokens of each model come back."""
    session = uuid.uuid4().hex
    data: list[Any] = [prompt, 1, TOKENS, 0.8, 50, 1, 0, 1, seed]  # in the order of the inputs on the page
    body = json.dumps({"data": data, "fn_index": function, "session_hash": session}).encode()
    headers = {"Content-Type": "application/json"}
    _opener.open(urllib.request.Request(f"{address}gradio_api/queue/join", body, headers), timeout=60).close()
    tokens: list[set[str]] = [set(), set()]
    with _opener.open(f"{address}gradio_api/queue/data?session_hash={session}", timeout=600) as events:
        for line in events:
            event = json.loads(line[5:]) if line.startswith(b"data:") else {}
            # The first message holds everything, later ones what was added, by the same positions.
            for side, position in enumerate((1, 2 + MAX_CONTINUATIONS)):  # the first text of each model
                values = (event.get("output") or {}).get("data") or []
                if len(values) > position:
                    text = json.dumps(values[position]).replace('\\"', '"')
                    tokens[side].update(re.findall(r'data-n="(\d+)"', text))
            if event.get("msg") == "process_completed":
                return [len(numbers) for numbers in tokens] if event.get("success") else [0, 0]
    return [0, 0]


def resident_bytes(pid: int) -> int:
    """Resident memory of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) * 1024


def main() -> None:
    """Run the selected parts."""
    parser = measure.argument_parser(__doc__, ("first", "crowd", "large"), rounds=3)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--small", action="store_true", help="models of one layer: memory of requests weighs more")
    arguments = parser.parse_args()
    print(measure.format_environment(measure.environment(devices.choose("auto"))), flush=True)
    with serve(arguments.precision, arguments.small) as (address, pid):
        parts: dict[str, measure.Part] = {
            "first": lambda: time_first_token(address, 2 * arguments.rounds),
            "crowd": lambda: send_many_requests(address, pid, arguments.rounds),
            "large": lambda: send_large_prompts(address, pid),
        }
        measure.run_parts(parts, arguments.only)


if __name__ == "__main__":
    main()
