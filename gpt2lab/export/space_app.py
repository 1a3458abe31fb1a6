"""A page where this GPT-2 and one with random weights continue the same prompt: the app of a Hugging Face Space.

Written by `gpt2lab export --space`. It needs gradio, torch and transformers, and the files of the model beside it.
"""

from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent
MAX_PROMPT_CHARACTERS = 8_000
MAX_CONTINUATIONS = 10
MAX_NEW_TOKENS = 200
MAX_WAITING = 32  # requests in the queue


def load() -> tuple[Any, list[Any]]:
    """The tokenizer, and two models: the trained one, and the same architecture with random weights."""
    import torch
    import transformers

    auto: Any = transformers.AutoModelForCausalLM
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    trained = auto.from_pretrained(FOLDER, dtype=torch.float32)
    torch.manual_seed(0)
    untrained = auto.from_config(transformers.AutoConfig.from_pretrained(FOLDER), dtype=torch.float32)
    return tokenizer, [model.to(device).eval() for model in (trained, untrained)]


def complete(
    tokenizer: Any, model: Any, prompt: str, count: int, max_new_tokens: int, temperature: float, top_k: int, seed: int
) -> str:
    """Continue a prompt; returns all texts, with the prompt."""
    import torch

    window = model.config.max_position_embeddings - max_new_tokens
    ids = tokenizer(prompt, return_tensors="pt").input_ids[:, -max(window, 1) :].to(model.device)
    max_new_tokens = min(max_new_tokens, model.config.max_position_embeddings - ids.shape[1])
    sampling = {"do_sample": True, "temperature": temperature, "top_k": top_k} if temperature else {"do_sample": False}
    torch.manual_seed(seed)
    rows = model.generate(
        ids.expand(count, -1),
        attention_mask=torch.ones_like(ids).expand(count, -1),
        max_new_tokens=max_new_tokens,
        pad_token_id=tokenizer.eos_token_id,
        **sampling,
    )
    texts = tokenizer.batch_decode(rows[:, ids.shape[1] :], skip_special_tokens=True)
    return "\n\n---\n\n".join(prompt + text for text in texts)


def build(tokenizer: Any, models: list[Any]) -> Any:
    """The page."""
    import gradio as gr

    longest = min(MAX_NEW_TOKENS, models[0].config.max_position_embeddings - 1)

    def write(
        prompt: str, count: float, max_new_tokens: float, temperature: float, top_k: float, seed: float
    ) -> list[str]:
        if not prompt or len(prompt) > MAX_PROMPT_CHARACTERS:
            raise gr.Error(f"the prompt must have 1 to {MAX_PROMPT_CHARACTERS:,} characters")
        if not (1 <= count <= MAX_CONTINUATIONS and 1 <= max_new_tokens <= longest and temperature >= 0 and top_k >= 0):
            raise gr.Error("a number is out of its range")
        numbers = (int(count), int(max_new_tokens), float(temperature), int(top_k), int(seed))
        return [complete(tokenizer, model, prompt, *numbers) for model in models]

    page = gr.Blocks(title="GPT-2: trained and untrained")
    with page:
        gr.Markdown("# One prompt, two models\n\nThe model has learned to continue text, not to follow instructions.")
        prompt = gr.Textbox(label="Prompt", value="Hello this is AI model,", max_length=MAX_PROMPT_CHARACTERS, lines=2)
        with gr.Row():
            inputs = [
                prompt,
                gr.Slider(1, MAX_CONTINUATIONS, 1, step=1, label="Continuations"),
                gr.Slider(1, longest, min(64, longest), step=1, label="New tokens of each"),
                gr.Slider(0, 2, 0.8, step=0.05, label="Temperature (0: always the most likely token)"),
                gr.Slider(0, 200, 50, step=1, label="Top k (0: all tokens)"),
                gr.Number(42, label="Seed", precision=0),
            ]
        button = gr.Button("Write", variant="primary")
        with gr.Row():
            outputs = [gr.Textbox(label=name, lines=10) for name in ("Trained", "Untrained")]
        button.click(write, inputs, outputs, api_name="write", concurrency_limit=1, concurrency_id="write")
        prompt.submit(write, inputs, outputs, api_visibility="private", concurrency_limit=1, concurrency_id="write")
    page.queue(max_size=MAX_WAITING)
    return page


if __name__ == "__main__":
    build(*load()).launch(max_file_size=1, ssr_mode=False)
