"""The page itself, in Gradio: what stands where, and what happens on a click."""

import os
import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2lab.app import markup
from gpt2lab.app.compare import LONGEST_PROMPT, MOST_TOKENS, Request, Writer, compare
from gpt2lab.app.record import COLORS, Record
from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.errors import GPT2LabError
from gpt2lab.generation.sampling import Sampling

if TYPE_CHECKING:
    import gradio

AT_A_TIME = 2  # requests that compute; more would only make all of them slow
WAITING = 32  # requests that may wait for their turn; beyond that Gradio refuses, and says so
REFRESH = 0.05  # seconds between two updates of the page
EXAMPLES = (
    "Return the number of",
    "The history of the Roman Empire",
    "To bake bread, you need",
    "Photosynthesis is the process by which",
)

_HERE = Path(__file__).parent
_FONTS = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")

Outputs = tuple[str, str, str, str, str]  # message; text and rate of the one; text and rate of the other


def build(
    writers: Sequence[Writer], tokenizer: Tokenizer, record: Callable[[], Record], examples: Sequence[str] = EXAMPLES
) -> "gradio.Blocks":
    """The page.

    Args:
        writers: two models.
        record: reads the run's curves, at every visit, since the run may still go on.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read by Gradio when it is imported
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "100"  # requests it keeps figures of, for a monitor that is off here
    import gradio as gr

    def write(*values: Any) -> Generator[Outputs, None, None]:
        yield from respond(writers, tokenizer, *values)

    page = gr.Blocks(title="gpt2lab", analytics_enabled=False)
    with page:
        gr.HTML("<h1>One prompt, two models</h1>")
        prompt = gr.Textbox(
            label="Prompt", value=examples[0], lines=2, max_lines=8, max_length=LONGEST_PROMPT, elem_id="prompt"
        )
        gr.Examples(label="Examples", examples=[[one] for one in examples], inputs=prompt, cache_examples=False)
        with gr.Row(elem_id="buttons"):
            go = gr.Button("Write", variant="primary", elem_id="write", min_width=120)
            stop = gr.Button("Stop", elem_id="stop", min_width=120)
        with gr.Accordion("How the next token is drawn", open=False, elem_id="sampling"), gr.Row():
            settings = [
                gr.Slider(
                    0, 2, 0.8, step=0.05, label="Temperature", info="0: always the likeliest token", min_width=220
                ),
                gr.Slider(0, 200, 50, step=1, label="Top-k", info="Of so many likeliest tokens; 0: all", min_width=220),
                gr.Slider(
                    0.05,
                    1,
                    1,
                    step=0.05,
                    label="Top-p",
                    info="Of the likeliest with this probability together",
                    min_width=220,
                ),
                gr.Slider(
                    0, 1, 0, step=0.01, label="Min-p", info="Of those with this share of the likeliest's", min_width=220
                ),
                gr.Slider(
                    1,
                    2,
                    1,
                    step=0.05,
                    label="Repetition penalty",
                    info="On tokens already there; 1: none",
                    min_width=220,
                ),
                gr.Slider(1, MOST_TOKENS, 64, step=1, label="Max new tokens", info="Of each model", min_width=220),
                gr.Number(42, precision=0, label="Seed", info="The same seed, the same text", min_width=220),
            ]
        message = gr.HTML(elem_id="message")
        gr.HTML(markup.legend())
        with gr.Row(elem_id="texts"):
            texts, rates = zip(*(_column(gr, writer, side) for side, writer in enumerate(writers)), strict=True)
        gr.HTML(markup.distribution(writers), elem_id="distribution")
        _run(gr, page, record)

        outputs = [message, texts[0], rates[0], texts[1], rates[1]]
        shared: dict[str, Any] = {
            "inputs": [prompt, *settings],
            "outputs": outputs,
            "api_visibility": "private",
            "concurrency_limit": AT_A_TIME,
            "concurrency_id": "write",
            "show_progress": "minimal",
            "show_progress_on": message,
        }
        started: list[dict[str, Any]] = [go.click(write, **shared), prompt.submit(write, **shared)]
        stop.click(
            lambda: markup.message("Stopped."), outputs=message, cancels=started, queue=False, api_visibility="private"
        )
    page.queue(max_size=WAITING, default_concurrency_limit=AT_A_TIME, api_open=False)
    return page


def respond(writers: Sequence[Writer], tokenizer: Tokenizer, *values: Any) -> Generator[Outputs, None, None]:
    """What the page shows while both models write; an error of the user's is shown in its place, in one line."""
    written = ["", ""]
    shown: Outputs = ("", "", "", "", "")
    counts = [0, 0]
    last = 0.0
    try:
        request = _request(*values)
        yield shown
        for writings in compare(writers, tokenizer, request):
            for side, writing in enumerate(writings):
                for piece in writing.pieces[counts[side] :]:
                    counts[side] += 1
                    written[side] += markup.token(piece, counts[side], tokenizer)
            first, second = (markup.prompt(request.prompt) + tokens for tokens in written)
            shown = ("", first, markup.speed(writings[0]), second, markup.speed(writings[1]))
            if sum(counts) <= len(writers) or time.perf_counter() - last > REFRESH:
                yield shown
                last = time.perf_counter()
        yield shown
    except GPT2LabError as error:
        yield (markup.message(str(error)), *shown[1:])


def serve(page: "gradio.Blocks", port: int) -> str:
    """Start serving on 127.0.0.1, without waiting for the end; returns the address.

    Raises:
        OSError: the port is taken.
    """
    import gradio as gr

    # What the environment could open is shut here; the server's calls to itself go through no proxy.
    for name in ("GRADIO_ALLOWED_PATHS", "GRADIO_ROOT_PATH", "GRADIO_NUM_WORKERS", "GRADIO_DEBUG"):
        os.environ.pop(name, None)
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1"]))
    _, address, _ = page.launch(
        server_name="127.0.0.1",
        server_port=port,
        share=False,
        inbrowser=False,
        quiet=True,
        prevent_thread_lock=True,
        allowed_paths=[],
        max_file_size=1,  # bytes: nothing is uploaded
        show_error=False,
        run_history=False,
        footer_links=[],
        enable_monitoring=False,
        mcp_server=False,
        ssr_mode=False,
        pwa=False,
        strict_cors=True,
        state_session_capacity=100,
        app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
        theme=gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=_FONTS[0], font_mono=_FONTS[1]),
        css=(_HERE / "page.css").read_text(encoding="utf-8"),
        head=f"<script>{(_HERE / 'page.js').read_text(encoding='utf-8')}</script>",
    )
    return str(address)


def _column(gr: Any, writer: Writer, side: int) -> tuple[Any, Any]:
    with gr.Column(min_width=280):
        gr.HTML(markup.heading(writer))
        written = gr.HTML("", html_template=markup.frame(writer, side), js_on_load=None, elem_id=f"text-{side}")
        rate = gr.HTML("", elem_id=f"rate-{side}", elem_classes="rate")
    return written, rate


def _run(gr: Any, page: Any, record: Callable[[], Record]) -> None:
    gr.HTML("<h2>How it was trained</h2>")
    tiles = gr.HTML()
    with gr.Row():
        plots = [
            gr.LinePlot(
                x="step",
                y=value,
                color="what",
                label=label,
                x_title="optimizer step",
                y_title=unit,
                color_title=" ",
                color_map=COLORS,
                height=320,
                show_label=False,  # it would push the chart's legend out of sight
                buttons=[],
            )
            for value, label, unit in (
                ("loss", "Loss", "loss (nats a token)"),
                ("accuracy", "HellaSwag", "HellaSwag acc_norm"),
            )
        ]

    def read() -> list[Any]:
        found = record()
        curves = [gr.LinePlot(frame, visible=frame is not None) for frame in (found.loss, found.hellaswag)]
        return [markup.tiles(found.figures) + markup.note(found.note), *curves]

    page.load(read, outputs=[tiles, *plots], api_visibility="private", show_progress="hidden")


def _request(
    prompt: Any,
    temperature: Any,
    top_k: Any,
    top_p: Any,
    min_p: Any,
    repetition_penalty: Any,
    max_new_tokens: Any,
    seed: Any,
) -> Request:
    """What was typed, as a request; an emptied field comes as None."""
    numbers = {
        "temperature": temperature,
        "top-k": top_k,
        "top-p": top_p,
        "min-p": min_p,
        "repetition penalty": repetition_penalty,
        "max new tokens": max_new_tokens,
        "seed": seed,
    }
    for name, value in numbers.items():
        if not isinstance(value, int | float) or value != value:
            raise GPT2LabError(f"{name} is empty; give a number")
    sampling = Sampling(temperature, int(top_k) or None, top_p, min_p, repetition_penalty)
    return Request(str(prompt or ""), int(max_new_tokens), sampling, int(seed))
