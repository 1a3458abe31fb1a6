"""What the page shows, as HTML: tokens with their probabilities, rates, the run's figures.

A token carries its probability and the likeliest tokens of its position as attributes; page.js draws the distribution
from them. So a choice of position costs the server nothing, and it keeps nothing of a request that is over.

Whatever a model writes or a person types is escaped here, and only here.
"""

import json
from collections.abc import Sequence
from html import escape

from gpt2lab.app.compare import Writer, Writing
from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.generation.text import TextDelta

# Classes u0 … u4 of page.css, by the probability from which on they hold.
LEVELS = ((0.0, "under 1%"), (0.01, "1% to 5%"), (0.05, "5% to 20%"), (0.2, "20% to 50%"), (0.5, "50% and more"))

# Control characters, which an untrained model writes and a browser would drop or obey, as U+FFFD.
_UNPRINTABLE = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\t\n"}


def level(probability: float) -> int:
    """Which of `LEVELS` a probability belongs to."""
    return sum(probability >= least for least, _ in LEVELS) - 1


def legend() -> str:
    """The colours and what they mean."""
    shown = "".join(f'<span class="u{n}">{name}</span>' for n, (_, name) in enumerate(LEVELS))
    return f'<div class="legend"><b>How likely the model held each token:</b> {shown}</div>'


def heading(writer: Writer) -> str:
    """A model's name, and what is known of it."""
    return f"<h3>{escape(writer.name)}</h3><p class='note'>{escape(writer.note)}</p>"


def frame(writer: Writer, side: int) -> str:
    """Gradio's template of the place where a model writes."""
    label = escape(f"{writer.name}: arrow keys choose a token")
    return f'<div class="tokens" data-side="{side}" tabindex="0" role="group" aria-label="{label}">${{value}}</div>'


def distribution(writers: Sequence[Writer]) -> str:
    """The place where page.js draws what could have come next."""
    panels = "".join(f'<div id="next-{n}" data-name="{escape(one.name)}"></div>' for n, one in enumerate(writers))
    return f"""<h2>What could have come next</h2>
<p class="note" id="which">Of every token that is written: choose one by a click or with the arrow keys.</p>
<div class="pair">{panels}</div>"""


def prompt(text: str) -> str:
    """The prompt, before what follows it."""
    return f'<span class="prompt">{_plain(text)}</span>'


def token(piece: TextDelta, position: int, tokenizer: Tokenizer) -> str:
    """A token in its colour. `position` is 1 for the first after the prompt.

    Half a character is shown as a dot until the token that completes it, which then stands for the whole of it.
    """
    drawn = piece.token
    probability = drawn.probability or 0.0
    top = [[tokenizer.decode([one]).translate(_UNPRINTABLE), float(f"{p:.4g}")] for one, p in drawn.top]
    kind = "" if piece.text else " ended" if piece.end == "end_of_text" else " half"
    data = escape(json.dumps(top, ensure_ascii=False, separators=(",", ":")))
    return (
        f'<span class="token u{level(probability)}{kind}" data-n="{position}" data-p="{probability:.4g}" '
        f'data-top="{data}" title="{percent(probability)}">{_plain(piece.text)}</span>'
    )


def speed(writing: Writing) -> str:
    """Tokens so far, tokens a second and the time to the first."""
    if writing.first is None:
        return ""
    rate = writing.tokens_per_second
    parts = [f"{len(writing.pieces)} tokens"] if len(writing.pieces) != 1 else ["1 token"]
    parts += [f"{rate:,.1f} tokens/s"] if rate else []
    return " · ".join([*parts, f"first after {1000 * writing.first:,.0f} ms"])


def message(text: str) -> str:
    """What went wrong, or nothing."""
    return f'<div class="message" role="alert">{escape(text)}</div>' if text else ""


def tiles(figures: Sequence[tuple[str, str]]) -> str:
    """(label, value) pairs, as tiles."""
    inside = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in figures)
    return f'<dl class="tiles">{inside}</dl>'


def note(text: str) -> str:
    """A line beside the matter."""
    return f'<p class="note">{escape(text)}</p>'


def percent(probability: float) -> str:
    """Three digits at most: 93%, 4.2%, 0.013%, under 0.001%."""
    share = 100 * probability
    return "under 0.001%" if share < 0.001 else f"{share:.0f}%" if share >= 10 else f"{share:.2g}%"


def _plain(text: str) -> str:
    return escape(text.translate(_UNPRINTABLE))
