"""The page for others: who can open it, what the server refuses, and many users at once."""

import http.client
import json
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from gpt2lab import cli
from gpt2lab.app import guard, page
from gpt2lab.app import run as app_run
from gpt2lab.app.compare import MAX_PROMPT_CHARACTERS
from gpt2lab.errors import GPT2LabError
from tests.app.conftest import read
from tests.app.test_app import VALUES, text_of, visible_text


@pytest.mark.parametrize(
    ("options", "launched"),
    [
        ([], {"server_name": "127.0.0.1", "share": False}),
        (["--share"], {"server_name": "127.0.0.1", "share": True}),
        (["--host", "0.0.0.0"], {"server_name": "0.0.0.0", "share": False}),
    ],
)
def test_the_page_is_open_to_others_only_when_asked_for(run, monkeypatch, capsys, options, launched):
    limits = []

    class Page:
        def launch(self, **arguments):
            assert {key: arguments[key] for key in launched} == launched
            assert arguments["allowed_paths"] == []
            return None, "http://127.0.0.1:7860/", "https://x.gradio.live" if arguments["share"] else None

        def block_thread(self):
            pass

    monkeypatch.setattr(app_run.pages, "build", lambda *arguments: limits.append(arguments[-1]) or Page())
    assert cli.main(["app", "--trained", str(run), "--device", "cpu", *options]) == 0
    out = capsys.readouterr().out
    assert ("warning: the page is open to others" in out) == bool(options)
    assert ("https://x.gradio.live" in out) == ("--share" in options)
    assert limits == [page.MAX_SECONDS if options else None]


def test_a_tunnel_that_does_not_open_and_a_foreign_address_are_one_line():
    class Page:
        def launch(self, **_):
            return None, "http://127.0.0.1:7860/", None

        def close(self, verbose):
            pass

    blocks: Any = Page()
    with pytest.raises(GPT2LabError, match="--share"):
        page.serve(blocks, 7860, share=True)
    for host in ("203.0.113.7", "no such host", "a" * 300, ""):
        with pytest.raises(GPT2LabError, match="not an address of this machine"):
            page.serve(blocks, 7860, host)
    with pytest.raises(GPT2LabError, match="IPv4"):
        page.serve(blocks, 7860, "::1")


TARGETS = ("etc/passwd", "{folder}/secret.txt", "{folder}/tiny/config.yaml", "proc/self/environ")
PREFIXES = (
    *("file=/", "file=", "file/", "gradio_api/file=/", "gradio_api/file=", "gradio_api/file/", "gradio_api//file=/"),
    *("gradio_api/file=..%2f..%2f..%2f..%2f..%2f", "gradio_api/file=%2e%2e/%2e%2e/%2e%2e/", "GRADIO_API/FILE=/"),
    *("static/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f", "assets/..%2f..%2f..%2f..%2f..%2f..%2f..%2f..%2f"),
    *("static/../../../../../../../", "svelte/..%2f..%2f..%2f..%2f..%2f..%2f..%2f", "%2e%2e/%2e%2e/", "..%5c..%5c"),
    *("gradio_api/proxy=file:///", "gradio_api/file=file:///", "gradio_api/stream/../../", "pwa_icon/..%2f..%2f"),
    *("gradio_api/custom_component/x/client/component/..%2f..%2f..%2f..%2f", "/", "theme.css/..%2f..%2f..%2f"),
)


def test_no_path_on_the_server_leads_to_a_file(served, run, tmp_path):
    (tmp_path / "secret.txt").write_text("SECRET")
    host, port = served[0].removeprefix("http://").rstrip("/").split(":")
    for prefix in PREFIXES:
        for target in TARGETS:
            path = "/" + prefix + target.format(folder=str(tmp_path if "secret" in target else run.parent).lstrip("/"))
            connection = http.client.HTTPConnection(host, int(port), timeout=60)
            connection.request("GET", path)  # as it is: urllib would shorten it
            answer = connection.getresponse()
            body = answer.read()
            connection.close()
            assert answer.status in (307, 400, 403, 404, 405) or b"<!doctype html>" in body.lower(), (path, body[:200])
            assert not any(secret in body for secret in (b"root:", b"SECRET", b"sample_prompt", b"PATH=")), path


def post(address, path, body):
    host, port = address.removeprefix("http://").rstrip("/").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=60)
    connection.request("POST", f"/{path}", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_large_requests_are_refused_before_they_are_read(served):
    prompt = json.dumps({"data": ["a" * 10_000_000], "fn_index": 0, "session_hash": "x"})
    status, text = post(served[0], "gradio_api/queue/join", prompt)
    assert (status, text.count("\n")) == (413, 0)
    assert f"10,000,{len(prompt) - 10_000_000:03} bytes; the maximum is 131,072" in text
    status, text = post(served[0], "gradio_api/queue/join", iter([b"{}"]))  # in chunks
    assert status == 411
    assert post(served[0], "gradio_api/upload", "x")[0] == 404
    longest = json.dumps({"data": ["\U0001f642" * MAX_PROMPT_CHARACTERS]})
    assert len(longest) < guard.MAX_REQUEST_BYTES
    assert post(served[0], "gradio_api/queue/join", longest)[0] not in (411, 413)


@pytest.mark.slow  # several seconds
def test_twenty_users_at_once_get_the_text_that_each_gets_alone(served, models, tokenizer):
    def last_text(seed):
        *_, last = page.respond(models, tokenizer, f"User {seed}", *(VALUES | {"seed": seed}).values())
        return [visible_text(text_of(last, side)) for side in (0, 1)]

    alone = [last_text(seed) for seed in range(20)]
    function = find_function(served[0])
    with ThreadPoolExecutor(20) as users:
        answers = list(
            users.map(lambda seed: ask(served[0], function, f"User {seed}", VALUES | {"seed": seed}), range(20))
        )
    for seed in range(20):
        assert [visible_text(text_of(answers[seed], side)) for side in (0, 1)] == alone[seed]


def find_function(address):
    """Number of the function that a click on Write calls."""
    config = json.loads(read(address + "config"))
    write = next(part["id"] for part in config["components"] if part["props"].get("elem_id") == "write")
    return next(
        dependency["id"]
        for dependency in config["dependencies"]
        if [write, "click"] in [list(target) for target in dependency["targets"]]
    )


def ask(address, function, prompt, values):
    """Send what the browser sends; returns the last outputs."""
    session = uuid.uuid4().hex
    body = json.dumps({"data": [prompt, *values.values()], "fn_index": function, "session_hash": session})
    status, text = post(address, "gradio_api/queue/join", body)
    assert status == 200, text
    for line in read(f"{address}gradio_api/queue/data?session_hash={session}").splitlines():
        event = json.loads(line[5:]) if line.startswith("data:") else {}
        if event.get("msg") == "process_completed":
            return event["output"]["data"]
    raise AssertionError("no answer")
