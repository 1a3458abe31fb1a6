"""The saved tokenizer, read by transformers and tokenizers, gives the same ids for every text."""

import json
import shutil

import pytest
from hypothesis import given, settings

from gpt2lab.data import huggingface_tokenizer
from gpt2lab.data.tokenizer import EOT, EOT_TEXT, Tokenizer
from gpt2lab.errors import GPT2LabError
from tests.data.test_tokenizer import CORNERS, TEXTS

TOKENIZER = Tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "new" / "folder"
    TOKENIZER.save_pretrained(folder, block_size=64)
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    return folder


@pytest.fixture(scope="module")
def saved(folder):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(folder)


def with_special_tokens(text: str) -> list[int]:
    """Ids of a text in which <|endoftext|> is 50256, as in transformers."""
    first, *rest = (TOKENIZER.encode(part) for part in text.split(EOT_TEXT))
    return sum(([EOT, *ids] for ids in rest), first)


def check(saved, text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert saved(text, split_special_tokens=True)["input_ids"] == ids
    assert saved(text)["input_ids"] == saved.encode(text) == with_special_tokens(text)
    assert saved.decode(ids) == text


@pytest.mark.parametrize("text", [*CORNERS, EOT_TEXT, f"a {EOT_TEXT} b{EOT_TEXT}\n{EOT_TEXT}{EOT_TEXT}", EOT_TEXT[:-1]])
def test_corner_cases(saved, text):
    check(saved, text)


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_any_text(saved, text):
    check(saved, text)


def test_attributes(saved):
    assert (len(saved), saved.vocab_size, saved.model_max_length, saved.is_fast) == (
        50257,
        50257,
        64,
        True,
    )
    assert (saved.bos_token_id, saved.eos_token_id, saved.unk_token_id, saved.pad_token) == (
        EOT,
        EOT,
        EOT,
        None,
    )
    assert saved.convert_tokens_to_ids(EOT_TEXT) == EOT
    assert saved.decode([*TOKENIZER.encode("a b"), EOT], skip_special_tokens=True) == "a b"


@pytest.mark.parametrize("kept", [("tokenizer.json",), ("vocab.json", "merges.txt")])
def test_either_format_is_sufficient(folder, tmp_path, kept):
    transformers = pytest.importorskip("transformers")
    for name in (*kept, "tokenizer_config.json", "config.json"):
        shutil.copy(folder / name, tmp_path)
    saved = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in CORNERS:
        check(saved, text)


def test_the_tokenizers_library_opens_it(folder):
    tokenizers = pytest.importorskip("tokenizers")
    saved = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in CORNERS:
        assert saved.encode(text).ids == with_special_tokens(text)


def test_no_other_files_are_written(folder):
    assert {file.name for file in folder.iterdir()} == {*huggingface_tokenizer.NAMES, "config.json"}
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 64


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(GPT2LabError, match="file"):
        TOKENIZER.save_pretrained(tmp_path / "file")
