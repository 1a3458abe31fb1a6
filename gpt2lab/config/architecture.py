"""The section `model` of the settings: the architecture. And what all sections share."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationInfo, field_validator, model_validator

from gpt2lab.formatting import parse_whole_number

GPT2_VOCAB_SIZE = 50257  # 256 bytes + 50,000 merges + <|endoftext|>; ids from here on are padding, never text

# n_layer, n_head, n_embd of the four published models (GPT-2 paper, table 2, with OpenAI's corrected counts).
SIZES = {"124M": (12, 12, 768), "medium": (24, 16, 1024), "large": (36, 20, 1280), "xl": (48, 25, 1600)}
SHAPE = ("n_layer", "n_head", "n_embd")
_SIZE_ALIASES = {"gpt2": "124M", "small": "124M", "355M": "medium", "774M": "large", "1558M": "xl"}


class Section(BaseModel):
    """One section of the settings: immutable; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    @field_validator("*", mode="before")
    @classmethod
    def _check_value(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str) and "\0" in value:
            raise ValueError("contains a NUL character")
        if isinstance(value, bool) and info.field_name and not _is_bool(cls.model_fields[info.field_name].annotation):
            raise ValueError(f"should be a number or text, not {str(value).lower()}")
        if isinstance(value, str) and info.field_name and _is_whole(cls.model_fields[info.field_name].annotation):
            return parse_whole_number(value, value)
        return value


def _is_bool(annotation: Any) -> bool:
    return bool in (annotation, *get_args(annotation))


def _is_whole(annotation: Any) -> bool:
    """Whether a setting is a whole number, or one or a word such as `auto`."""
    return any((*get_args(member), member)[0] is int for member in (annotation, *get_args(annotation)))


class GPT2Config(Section):
    """The architecture, by `size`; explicit numbers override those of the size."""

    architecture: Literal["gpt2", "modern"] = "gpt2"
    """gpt2, or modern: the same size with measures that reach the same loss with fewer tokens (docs/modern.md)."""
    size: Literal["124M", "medium", "large", "xl"] | None = "124M"
    """124M, medium, large or xl (or gpt2, gpt2-medium, …): sets n_layer, n_head and n_embd."""
    n_layer: PositiveInt = 12
    """Number of transformer blocks; default: by model.size."""
    n_head: PositiveInt = 12
    """Attention heads per block; default: by model.size."""
    n_embd: PositiveInt = 768
    """Channels of the residual stream, divisible by n_head; default: by model.size."""
    block_size: PositiveInt = 1024
    """Context window in tokens."""
    vocab_size: Annotated[int, Field(ge=1, le=65536)] = GPT2_VOCAB_SIZE
    """Number of token embeddings: 50257, or 50304 (padded), for faster matrix products."""
    tie_word_embeddings: bool = True
    """Share one matrix between the token embedding and the output head, as GPT-2 does; modern never does."""
    activation: Literal["gelu_tanh", "gelu"] = "gelu_tanh"
    """gelu_tanh: the approximation of GELU that GPT-2 was trained with; gelu: the exact function, as in nanoGPT."""

    @model_validator(mode="before")
    @classmethod
    def _fill_from_size(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        values = {key: value for key, value in values.items() if value is not None}
        if isinstance(size := values.get("size"), str):
            values["size"] = _SIZE_ALIASES.get(size.removeprefix("gpt2-"), size.removeprefix("gpt2-"))
        if values.get("architecture") == "modern":
            values["tie_word_embeddings"] = False  # does not apply
        size = values.get("size", "124M")
        if isinstance(size, str) and (shape := SIZES.get(size)) is not None:
            values = dict(zip(SHAPE, shape, strict=True)) | values
            if tuple(values[key] for key in SHAPE) != shape:
                values["size"] = None  # a 7M model must not be shown as 124M
        return values

    @model_validator(mode="after")
    def _heads_divide_channels(self) -> "GPT2Config":
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd {self.n_embd} is not divisible by n_head {self.n_head}")
        if self.architecture == "modern" and self.n_embd // self.n_head % 2:
            raise ValueError(f"n_embd / n_head is {self.n_embd // self.n_head}; rotary positions need an even number")
        return self
