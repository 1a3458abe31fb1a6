"""HTML of the page: tokens with their probabilities, rates, figures of the run.

A token carries its probability and the most likely tokens of its position as attributes. page.js draws the distribution
from them, so choosing a position needs no request, and the server keeps no state of finished requests.

Text of models and users is escaped here and nowhere else.
"""

import json
from collections.abc import Sequence
from html import escape

from gpt2lab.app.compare import ComparedModel, Continuation
from gpt2lab.data.tokenizer import Tokenizer
from gpt2lab.formatting import replace_control_characters
from gpt2lab.generation.text import TextDelta

# (lowest probability, label) of the classes u0 to u4 in page.css.
LEVELS = ((0.0, "under 1%"), (0.01, "1% to 5%"), (0.05, "5% to 20%"), (0.2, "20% to 50%"), (0.5, "50% and more"))


def level(probability: float) -> int:
    """The index in LEVELS of a probability in [0, 1]."""
    return sum(probability >= lowest for lowest, _ in LEVELS) - 1


def legend() -> str:
    """The legend of the colors."""
    labels = "".join(f'<span class="u{index}">{label}</span>' for index, (_, label) in enumerate(LEVELS))
    return f'<div class="legend"><b>Probability of each token in the model:</b> {labels}</div>'


def heading(compared: ComparedModel) -> str:
    """A model's name and description."""
    return f"<h3>{escape(compared.name)}</h3><p class='note'>{escape(compared.note)}</p>"


def text_template(compared: ComparedModel, side: int) -> str:
    """Gradio's template of the text of model number `side` (0 or 1)."""
    label = escape(f"{compared.name}: arrow keys choose a token")
    return f'<div class="tokens" data-side="{side}" tabindex="0" role="group" aria-label="{label}">${{value}}</div>'


def distribution(models: Sequence[ComparedModel]) -> str:
    """The panels where page.js draws the most likely tokens of a position."""
    panels = "".join(
        f'<div id="next-{side}" data-name="{escape(compared.name)}"></div>' for side, compared in enumerate(models)
    )
    return f"""<h2>Most likely tokens</h2>
<p class="note" id="which">Choose a generated token by a click or with the arrow keys.</p>
<div class="pair">{panels}</div>"""


def prompt(text: str) -> str:
    """The prompt, as shown before its continuation."""
    return f'<span class="prompt">{_escape(text)}</span>'


def token(delta: TextDelta, position: int, tokenizer: Tokenizer) -> str:
    """A token in the color of its probability.

    Args:
        delta: the token and its text. A token that ends within a character has no text and is shown as a dot; the
            token that completes the character shows all of it.
        position: 1 for the first token after the prompt.
        tokenizer: decodes the most likely tokens.

    Returns:
        The HTML.
    """
    probability = delta.token.probability or 0.0
    top = [[replace_control_characters(tokenizer.decode([id_])), float(f"{p:.4g}")] for id_, p in delta.token.top]
    partial = "" if delta.text else " ended" if delta.end == "end_of_text" else " half"
    data = escape(json.dumps(top, ensure_ascii=False, separators=(",", ":")))
    return (
        f'<span class="token u{level(probability)}{partial}" data-n="{position}" data-p="{probability:.4g}" '
        f'data-top="{data}" title="{format_probability(probability)}">{_escape(delta.text)}</span>'
    )


def speed(continuation: Continuation) -> str:
    """Number of tokens, tokens per second and time to the first token."""
    if continuation.seconds_to_first_token is None:
        return ""
    count, rate = len(continuation.deltas), continuation.tokens_per_second
    parts = [f"{count} token{'s' if count != 1 else ''}"]
    parts += [f"{rate:,.1f} tokens/s"] if rate else []
    return " · ".join([*parts, f"first after {1000 * continuation.seconds_to_first_token:,.0f} ms"])


def message(text: str) -> str:
    """An error message, or nothing for empty text."""
    return f'<div class="message" role="alert">{escape(text)}</div>' if text else ""


def tiles(figures: Sequence[tuple[str, str]]) -> str:
    """(label, value) pairs as tiles."""
    items = "".join(f"<div><dt>{escape(label)}</dt><dd>{escape(value)}</dd></div>" for label, value in figures)
    return f'<dl class="tiles">{items}</dl>'


def note(text: str) -> str:
    """A paragraph of small text."""
    return f'<p class="note">{escape(text)}</p>'


def format_probability(probability: float) -> str:
    """A probability in percent with up to three digits: 93%, 4.2%, 0.013%, under 0.001%."""
    percent = 100 * probability
    return "under 0.001%" if percent < 0.001 else f"{percent:.0f}%" if percent >= 10 else f"{percent:.2g}%"


def _escape(text: str) -> str:
    return escape(replace_control_characters(text))
