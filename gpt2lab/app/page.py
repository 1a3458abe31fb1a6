"""The page in Gradio: its layout, and what its buttons do."""

import functools
import logging
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2lab.app import markup
from gpt2lab.app.compare import MAX_PROMPT_CHARACTERS, ComparedModel, compare
from gpt2lab.app.markup import macros
from gpt2lab.app.record import COLORS, Record
from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.errors import GPT2LabError
from gpt2lab.generation.options import GenerationOptions, Sampling

if TYPE_CHECKING:
    import gradio

logger = logging.getLogger(__name__)

PORTS_TRIED = 100
MAX_RUNNING = 2  # requests computed at the same time; more would make all of them slow
MAX_WAITING = 32  # requests in the queue; Gradio refuses more with a message
UPDATE_SECONDS = 0.05  # between two updates of the page
EXAMPLES = (
    "Return the number of",
    "The history of the Roman Empire",
    "To bake bread, you need",
    "Photosynthesis is the process by which",
)
DEFAULTS = GenerationOptions(max_new_tokens=64, sampling=Sampling(temperature=0.8, top_k=50))

_FOLDER = Path(__file__).parent
_FONTS = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")

Outputs = tuple[str, str, str, str, str]  # message, text and rate of the first model, text and rate of the second


def build(
    models: Sequence[ComparedModel],
    tokenizer: Tokenizer,
    record: Callable[[], Record],
    examples: Sequence[str],
) -> "gradio.Blocks":
    """Build the page.

    Args:
        models: the two models.
        tokenizer: their tokenizer.
        record: reads the curves of the run. It is called at every visit, since the run may be going on.
        examples: prompts to choose from; the first is filled in.

    Returns:
        The page, not yet served.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read by Gradio when it is imported
    os.environ["GRADIO_ANALYTICS_MAX_EVENTS"] = "100"  # requests recorded for Gradio's monitor, which is off here
    import gradio as gr

    page = gr.Blocks(title="gpt2lab", analytics_enabled=False)
    with page:
        gr.HTML("<h1>One prompt, two models</h1>")
        prompt = gr.Textbox(
            label="Prompt", value=examples[0], lines=2, max_lines=8, max_length=MAX_PROMPT_CHARACTERS, elem_id="prompt"
        )
        gr.Examples(label="Examples", examples=[[text] for text in examples], inputs=prompt, cache_examples=False)
        with gr.Row(elem_id="buttons"):
            write = gr.Button("Write", variant="primary", elem_id="write", min_width=120)
            stop = gr.Button("Stop", elem_id="stop", min_width=120)
        with gr.Accordion("Sampling", open=False, elem_id="sampling"), gr.Row():
            inputs = [prompt, *(_input(gr, field, default) for field, default in _generation_fields(DEFAULTS))]
        message = gr.HTML(elem_id="message")
        gr.HTML(macros.legend(markup.LEVELS))
        with gr.Row(elem_id="texts"):
            outputs = [message, *_column(gr, models[0], 0), *_column(gr, models[1], 1)]
        gr.HTML(macros.distribution(models), elem_id="distribution")
        _add_curves(gr, page, record)

        event: dict[str, Any] = {
            "inputs": inputs,
            "outputs": outputs,
            "api_visibility": "private",
            "concurrency_limit": MAX_RUNNING,
            "concurrency_id": "write",
            "show_progress": "minimal",
            "show_progress_on": message,
        }
        respond_to = functools.partial(respond, models, tokenizer)
        running: list[dict[str, Any]] = [write.click(respond_to, **event), prompt.submit(respond_to, **event)]
        stopped = macros.message("Stopped.")
        stop.click(lambda: stopped, outputs=message, cancels=running, queue=False, api_visibility="private")
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=MAX_RUNNING, api_open=False)
    return page


def respond(models: Sequence[ComparedModel], tokenizer: Tokenizer, *values: Any) -> Generator[Outputs, None, None]:
    """Continue a prompt with both models.

    Args:
        models: the two models.
        tokenizer: their tokenizer.
        values: the prompt, then the generation options in the order of their fields.

    Yields:
        What the page shows, whenever it changes. An error of the user appears there as one line.
    """
    rates = ["", ""]
    shown: Outputs = ("", "", "", "", "")
    last_update = 0.0
    try:
        prompt, generation = _read_inputs(*values)
        texts = [str(macros.prompt(prompt))] * 2
        yield shown
        for side, continuation in compare(models, tokenizer, prompt, generation):
            count = len(continuation.deltas)
            texts[side] += markup.token(continuation.deltas[-1], count, tokenizer)
            rates[side] = markup.speed(continuation)
            shown = ("", texts[0], rates[0], texts[1], rates[1])
            if count == 1 or time.perf_counter() - last_update > UPDATE_SECONDS:
                yield shown
                last_update = time.perf_counter()
        yield shown
    except GPT2LabError as error:
        yield (str(macros.message(str(error))), *shown[1:])


def serve(page: "gradio.Blocks", port: int) -> str:
    """Start serving on the first free port of 127.0.0.1, in a thread.

    Args:
        page: the page.
        port: first port to try.

    Returns:
        The address of the page.

    Raises:
        GPT2LabError: no port is free.
    """
    import gradio as gr

    # Variables that would open the server to others; its requests to itself must not use a proxy.
    for name in ("GRADIO_ALLOWED_PATHS", "GRADIO_ROOT_PATH", "GRADIO_NUM_WORKERS", "GRADIO_DEBUG"):
        os.environ.pop(name, None)
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1"]))
    last = min(port + PORTS_TRIED, 65536) - 1
    for candidate in range(port, last + 1):
        try:
            _, address, _ = page.launch(
                server_name="127.0.0.1",
                server_port=candidate,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                max_file_size=1,  # bytes; the page uploads nothing
                run_history=False,
                footer_links=[],
                enable_monitoring=False,
                mcp_server=False,
                ssr_mode=False,
                pwa=False,
                state_session_capacity=100,
                app_kwargs={"docs_url": None, "redoc_url": None, "openapi_url": None},
                theme=gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=_FONTS[0], font_mono=_FONTS[1]),
                css=(_FOLDER / "page.css").read_text(encoding="utf-8"),
                head=f"<script>{(_FOLDER / 'page.js').read_text(encoding='utf-8')}</script>",
            )
            return str(address)
        except OSError:
            logger.info("port %d is taken", candidate)
    raise GPT2LabError(f"no port from {port} to {last} is free; give another with --port")


def _generation_fields(defaults: Any) -> Iterator[tuple[Field[Any], Any]]:
    """The fields of GenerationOptions and of Sampling within it, in order, with their defaults."""
    for field in fields(defaults):
        default = getattr(defaults, field.name)
        if is_dataclass(default):
            yield from _generation_fields(default)
        else:
            yield field, default


def _input(gr: Any, field: Field[Any], default: float) -> Any:
    """A slider for an option; a number field if the option has no range."""
    label, info = field.name.replace("_", " ").capitalize(), field.metadata["help"]
    bounds = {key: field.metadata[key] for key in ("minimum", "maximum", "step") if key in field.metadata}
    component = gr.Slider if bounds else functools.partial(gr.Number, precision=0)
    return component(value=default, label=label, info=info, min_width=220, **bounds)


def _read_inputs(prompt: Any, *values: Any) -> tuple[str, GenerationOptions]:
    """What the user entered; an empty field is None."""
    numbers: dict[str, Any] = {}
    for (field, _), value in zip(_generation_fields(DEFAULTS), values, strict=True):
        if not isinstance(value, int | float) or value != value:
            raise GPT2LabError(f"{field.name} is empty; give a number")
        is_integer = field.type in (int, int | None)
        number = int(value) if is_integer else value
        numbers[field.name] = None if field.metadata.get("zero_is_none") and number == 0 else number
    max_new_tokens, seed = numbers.pop("max_new_tokens"), numbers.pop("seed")
    return str(prompt or ""), GenerationOptions(max_new_tokens, Sampling(**numbers), seed)


def _column(gr: Any, compared: ComparedModel, side: int) -> tuple[Any, Any]:
    with gr.Column(min_width=280):
        gr.HTML(macros.heading(compared))
        template = str(macros.text_template(compared, side))
        text = gr.HTML("", html_template=template, js_on_load=None, elem_id=f"text-{side}")
        rate = gr.HTML("", elem_id=f"rate-{side}", elem_classes="rate")
    return text, rate


def _add_curves(gr: Any, page: Any, record: Callable[[], Record]) -> None:
    gr.HTML("<h2>How it was trained</h2>")
    tiles = gr.HTML()
    with gr.Row():
        plots = [
            gr.LinePlot(
                x="step",
                y=column,
                color="curve",
                x_title="optimizer step",
                y_title=y_title,
                color_title=" ",
                color_map=COLORS,
                height=320,
                show_label=False,  # it would hide the legend
                buttons=[],
            )
            for column, y_title in (("loss", "loss (nats per token)"), ("accuracy", "HellaSwag acc_norm"))
        ]

    def load() -> list[Any]:
        current = record()
        curves = [
            gr.LinePlot(frame, visible=frame is not None, x_lim=_step_range(frame))
            for frame in (current.loss, current.hellaswag)
        ]
        return [macros.record(current.figures, current.note), *curves]

    page.load(load, outputs=[tiles, *plots], api_visibility="private", show_progress="hidden")


def _step_range(frame: Any) -> list[float] | None:
    """The range of the x axis: a little more than the data. A tick label at the very end is moved into its neighbor."""
    if frame is None or frame["step"].nunique() == 1:
        return None
    first, last = frame["step"].min(), frame["step"].max()
    return [float(first), float(last + 0.03 * (last - first))]
