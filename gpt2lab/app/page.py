"""The page in Gradio: its layout, and what its buttons do."""

import functools
import ipaddress
import logging
import os
import socket
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2lab.app import markup
from gpt2lab.app.compare import MAX_CONTINUATIONS, MAX_PROMPT_CHARACTERS, ComparedModel, compare
from gpt2lab.app.guard import RequestGuard
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
MAX_SECONDS = 120  # of computing for a request, where the page is open to others
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

# The message; then for each model MAX_CONTINUATIONS texts (empty: not asked for), and the rate.
Outputs = tuple[str, ...]


def build(
    models: Sequence[ComparedModel],
    tokenizer: Tokenizer,
    record: Callable[[], Record],
    examples: Sequence[str],
    max_seconds: float | None = None,
) -> "gradio.Blocks":
    """Build the page.

    Args:
        models: the two models.
        tokenizer: their tokenizer.
        record: reads the curves of the run. It is called at every visit, since the run may be going on.
        examples: prompts to choose from; the first is filled in.
        max_seconds: of computing for a request; None: no limit.

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
            count = gr.Slider(1, MAX_CONTINUATIONS, 1, step=1, label="Continuations", elem_id="count", min_width=220)
        with gr.Accordion("Sampling", open=False, elem_id="sampling"), gr.Row():
            inputs = [prompt, count, *(_input(gr, field, default) for field, default in _generation_fields(DEFAULTS))]
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
        respond_to = functools.partial(respond, models, tokenizer, max_seconds=max_seconds)
        running: list[dict[str, Any]] = [write.click(respond_to, **event), prompt.submit(respond_to, **event)]
        stopped = macros.message("Stopped.")
        stop.click(lambda: stopped, outputs=message, cancels=running, queue=False, api_visibility="private")
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=MAX_RUNNING, api_open=False)
    return page


def respond(
    models: Sequence[ComparedModel], tokenizer: Tokenizer, *values: Any, max_seconds: float | None = None
) -> Generator[Outputs, None, None]:
    """Continue a prompt with both models.

    Args:
        models: the two models.
        tokenizer: their tokenizer.
        values: the prompt, the number of continuations, then the generation options in the order of their fields.
        max_seconds: of computing; None: no limit.

    Yields:
        What the page shows, whenever it changes. An error of the user appears there as one line.
    """
    texts, rates, message = [[""] * MAX_CONTINUATIONS for _ in models], [""] * len(models), ""

    def shown() -> Outputs:
        columns = (value for side, rate in zip(texts, rates, strict=True) for value in (*side, rate))
        return (message, *columns)

    start = last_update = time.perf_counter()
    try:
        prompt, count, generation = _read_inputs(*values)
        texts = [[str(macros.prompt(prompt))] * count + [""] * (MAX_CONTINUATIONS - count) for _ in models]
        positions = [[0] * count for _ in models]
        yield shown()
        for side, continuation in compare(models, tokenizer, prompt, generation, count):
            delta = continuation.deltas[-1]
            positions[side][delta.row] += 1
            position = positions[side][delta.row]
            texts[side][delta.row] += markup.token(delta, position, tokenizer)
            rates[side] = markup.speed(continuation)
            now = time.perf_counter()
            if max_seconds is not None and now - start > max_seconds:
                raise GPT2LabError(f"stopped: a request may compute for {max_seconds:g} s here; ask for fewer tokens")
            if position == 1 or now - last_update > UPDATE_SECONDS:
                yield shown()
                last_update = time.perf_counter()
    except GPT2LabError as error:
        message = str(macros.message(str(error)))
        if not any(rates):
            texts = [[""] * MAX_CONTINUATIONS for _ in models]
    yield shown()


def serve(page: "gradio.Blocks", port: int, host: str = "127.0.0.1", share: bool = False) -> list[str]:
    """Start serving on the first free port, in a thread.

    Args:
        page: the page.
        port: first port to try.
        host: address of this machine to listen on; 0.0.0.0: all.
        share: also open a tunnel from a public address, by Gradio's service.

    Returns:
        The addresses of the page, that of the tunnel last.

    Raises:
        GPT2LabError: this machine does not have the address, no port is free, or there is no tunnel.
    """
    import gradio as gr
    from starlette.middleware import Middleware

    _check_host(host)
    _prepare_environment(host)
    last = min(port + PORTS_TRIED, 65536) - 1
    for candidate in range(port, last + 1):
        try:
            _, address, public_address = page.launch(
                server_name=host,
                server_port=candidate,
                share=share,
                quiet=True,
                prevent_thread_lock=True,
                max_file_size=1,  # bytes; the page uploads nothing
                allowed_paths=[],
                blocked_paths=[os.path.abspath(os.sep)],  # it shows no files
                run_history=False,
                footer_links=[],
                enable_monitoring=False,
                mcp_server=False,
                ssr_mode=False,
                pwa=False,
                state_session_capacity=100,
                app_kwargs={
                    "docs_url": None,
                    "redoc_url": None,
                    "openapi_url": None,
                    "middleware": [Middleware(RequestGuard)],
                },
                theme=gr.themes.Base(primary_hue="blue", neutral_hue="slate", font=_FONTS[0], font_mono=_FONTS[1]),
                css=(_FOLDER / "page.css").read_text(encoding="utf-8"),
                head=f"<script>{(_FOLDER / 'page.js').read_text(encoding='utf-8')}</script>",
            )
        except OSError:
            logger.info("port %d is taken%s", candidate, "; trying the next" if candidate < last else "")
            continue
        if share and not public_address:
            page.close(verbose=False)
            raise GPT2LabError("--share: Gradio's service gave no public address; use --host, or try again later")
        return [str(address), *([str(public_address)] if share else [])]
    raise GPT2LabError(f"no port from {port} to {last} is free; give another with --port")


def _prepare_environment(host: str) -> None:
    # Variables that would open the server to others; its requests to itself must not use a proxy.
    for name in ("GRADIO_ALLOWED_PATHS", "GRADIO_ROOT_PATH", "GRADIO_NUM_WORKERS", "GRADIO_DEBUG"):
        os.environ.pop(name, None)
    for name in ("NO_PROXY", "no_proxy"):
        os.environ[name] = ",".join(filter(None, [os.environ.get(name), "127.0.0.1", "localhost", host]))


def is_open(host: str, share: bool) -> bool:
    """Whether other machines can reach the page.

    Args:
        host: address that the server listens on.
        share: whether there is a tunnel.
    """
    try:
        return share or not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def _check_host(host: str) -> None:
    if ":" in host:
        raise GPT2LabError(f"--host {host}: Gradio listens on IPv4 addresses; give one, such as 127.0.0.1")
    try:
        family, *_, address = socket.getaddrinfo(host or "?", 0, socket.AF_INET, socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.bind(address)
    except (OSError, UnicodeError):
        raise GPT2LabError(
            f"--host {host}: not an address of this machine; 0.0.0.0 stands for all, 127.0.0.1 is for itself only"
        ) from None


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


def _read_inputs(prompt: Any, count: Any, *values: Any) -> tuple[str, int, GenerationOptions]:
    """What the user entered; an empty field is None."""
    numbers: dict[str, Any] = {"continuations": int(_number("continuations", count))}
    for (field, _), value in zip(_generation_fields(DEFAULTS), values, strict=True):
        is_integer = field.type in (int, int | None)
        number = int(_number(field.name, value)) if is_integer else _number(field.name, value)
        numbers[field.name] = None if field.metadata.get("zero_is_none") and number == 0 else number
    if not 1 <= numbers["continuations"] <= MAX_CONTINUATIONS:
        raise GPT2LabError(f"continuations is {numbers['continuations']}; it must be from 1 to {MAX_CONTINUATIONS}")
    count, max_new_tokens, seed = (numbers.pop(name) for name in ("continuations", "max_new_tokens", "seed"))
    return str(prompt or ""), count, GenerationOptions(max_new_tokens, Sampling(**numbers), seed)


def _number(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or value != value or abs(value) == float("inf"):
        raise GPT2LabError(f"{name} is empty; give a number")
    return value


def _column(gr: Any, compared: ComparedModel, side: int) -> list[Any]:
    """The outputs of a model: its texts and its rate."""
    with gr.Column(min_width=280):
        gr.HTML(macros.heading(compared))
        texts = []
        for row in range(MAX_CONTINUATIONS):
            template = str(macros.text_template(compared, side, row))
            name = f"text-{side}-{row}" if row else f"text-{side}"
            texts.append(gr.HTML("", html_template=template, js_on_load=None, elem_id=name, elem_classes="text"))
        rate = gr.HTML("", elem_id=f"rate-{side}", elem_classes="rate")
    return [*texts, rate]


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
