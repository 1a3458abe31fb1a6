"""How soon is the first token on the screen, and does the page stand a crowd? The bars of `gpt2lab app`, in one run.

    python benchmarks/app.py            # some 3 minutes on two cores; Chromium and Playwright needed for the part first

Two models of GPT-2 124M's shape, drawn at random: speed and memory do not need trained ones. The page runs in a process
of its own. Parts:

    first   from the click on Write to the first token in the browser, with the settings as the page has them
    crowd   rounds of 20 requests at the same moment, all of which must be answered in full; the server's memory after
            each (resident set, Linux)
"""

import argparse
import contextlib
import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from gpt2lab import GPT2, GPT2Config
from gpt2lab.system import device as devices
from gpt2lab.training.run_directory import commit

PARTS = ("first", "crowd")
CROWD, TOKENS = 20, 16
FLAT = 0.05  # of its size: what the server may grow between the end of the first round and the end of the last
Line = tuple[str, str, bool | None]  # what, figure, bar met (None: no bar)

# Clicks, and resolves with the milliseconds until a frame with the first new token has been drawn.
CLICK = """() => new Promise((resolve) => {
  const place = document.getElementById("text-0");
  let emptied = !place.querySelector(".token"); // of the text before
  const began = performance.now();
  const watch = new MutationObserver(() => {
    const there = Boolean(place.querySelector(".token"));
    emptied ||= !there;
    if (!there || !emptied) return;
    watch.disconnect();
    requestAnimationFrame(() => requestAnimationFrame(() => resolve(performance.now() - began)));
  });
  watch.observe(place, { childList: true, subtree: true, characterData: true });
  document.getElementById("write").click();
})"""

_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # straight, whatever the environment says


@contextlib.contextmanager
def served(precision: str, small: bool) -> Iterator[tuple[str, int]]:
    """(address, process id) of the page with a 124M model, or one of a layer, and an untrained one."""
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


def first(address: str, pid: int, rounds: int) -> Iterator[Line]:
    """Several clicks, each when the text before it is complete."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        yield "first token on the screen", "not measured: no browser", None
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--no-proxy-server"])
        page = browser.new_page()
        page.goto(address)
        page.wait_for_selector("#write")
        page.wait_for_timeout(2000)  # the charts
        seconds = []
        for _ in range(rounds):
            seconds.append(page.evaluate(CLICK) / 1000)
            for side in (0, 1):
                page.wait_for_function(f"document.querySelectorAll('#text-{side} .token').length >= 64", timeout=60_000)
            page.wait_for_timeout(500)
        rates = [page.inner_text(f"#rate-{side}") for side in (0, 1)]
        browser.close()
    figure = f"{statistics.median(seconds):.2f} s median, {max(seconds):.2f} s at most, of {rounds} clicks"
    yield "first token on the screen < 1 s after the click", figure, max(seconds) < 1
    yield "what the page said of the last", " | ".join(rates), None


def crowd(address: str, pid: int, rounds: int) -> Iterator[Line]:
    """`CROWD` visitors at once, `rounds` times."""
    config = json.load(_opener.open(f"{address}config"))
    write = next(part["id"] for part in config["components"] if part["props"].get("elem_id") == "write")
    function = next(
        one["id"] for one in config["dependencies"] if [write, "click"] in [list(t) for t in one["targets"]]
    )
    sizes = [_resident(pid)]
    for number in range(1, rounds + 1):
        began = time.perf_counter()
        with ThreadPoolExecutor(CROWD) as visitors:
            counts = list(visitors.map(lambda seed: _visit(address, function, seed), range(CROWD)))
        seconds = time.perf_counter() - began
        sizes.append(_resident(pid))
        whole = sum(count == [TOKENS, TOKENS] for count in counts)
        what = f"round {number}: {CROWD} requests at once, {TOKENS} tokens of each model"
        yield what, f"{whole} answered in full, {seconds:.1f} s", whole == CROWD
    grown = sizes[-1] / sizes[1] - 1
    figure = ", ".join(f"{size / 2**20:,.0f}" for size in sizes) + f" MiB before and after each round; {grown:+.1%}"
    yield f"memory flat (below {FLAT:+.0%} from round 1 to {rounds})", figure, grown < FLAT


def _visit(address: str, function: int, seed: int) -> list[int]:
    """What the browser sends on a click, and how many tokens of each model come back."""
    session = uuid.uuid4().hex
    data: list[Any] = ["Once upon a time", 0.8, 50, 1, 0, 1, TOKENS, seed]
    body = json.dumps({"data": data, "fn_index": function, "session_hash": session}).encode()
    headers = {"Content-Type": "application/json"}
    _opener.open(urllib.request.Request(f"{address}gradio_api/queue/join", body, headers), timeout=60).close()
    found: list[set[str]] = [set(), set()]
    with _opener.open(f"{address}gradio_api/queue/data?session_hash={session}", timeout=600) as events:
        for line in events:
            event = json.loads(line[5:]) if line.startswith(b"data:") else {}
            # The first answer is whole, the others are what was added to it, by place.
            for side, place in enumerate((1, 3)):
                values = (event.get("output") or {}).get("data") or []
                if len(values) > place:
                    found[side].update(re.findall(r'data-n="(\d+)"', json.dumps(values[place]).replace('\\"', '"')))
            if event.get("msg") == "process_completed":
                return [len(one) for one in found] if event.get("success") else [0, 0]
    return [0, 0]


def _resident(pid: int) -> int:
    """Bytes."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) * 1024


def main() -> None:
    """Run the parts asked for and print a line a figure; those with a bar say whether it is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), metavar="A,B", help=f"parts of {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of crowd; of first, twice as many")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--small", action="store_true", help="models of one layer: what requests leave weighs more")
    arguments = parser.parse_args()
    device = devices.choose("auto")
    print(f"commit {commit() or 'unknown'}; torch {torch.__version__}; {devices.describe(device)}", flush=True)
    with served(arguments.precision, arguments.small) as (address, pid):
        for part in arguments.only.split(","):
            ask_part = {"first": first, "crowd": crowd}[part]
            rounds = arguments.rounds * (2 if part == "first" else 1)
            for what, figure, met in ask_part(address, pid, rounds):
                print(f"{'    ' if met is None else 'ok  ' if met else 'MISS'} {part:6} {what}: {figure}", flush=True)


if __name__ == "__main__":
    main()
