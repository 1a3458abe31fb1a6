"""The tokenizer's files, opened by transformers and by tokenizers: the same ids on whatever text."""

import json
import shutil

import pytest
from hypothesis import given, settings

from gpt2lab.data import huggingface_tokenizer
from gpt2lab.data.tokenizer import EOT, EOT_TEXT, Tokenizer
from gpt2lab.errors import GPT2LabError
from tests.data.test_tokenizer import CORNERS, TEXTS

OURS = Tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "new" / "folder"
    OURS.save_pretrained(folder, block_size=64)
    (folder / "config.json").write_text('{"model_type": "gpt2"}')
    return folder


@pytest.fixture(scope="module")
def theirs(folder):
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(folder)


def with_special_tokens(text: str) -> list[int]:
    """Our ids of a text in which <|endoftext|> stands for 50256, as transformers has it."""
    first, *rest = (OURS.encode(part) for part in text.split(EOT_TEXT))
    return sum(([EOT, *ids] for ids in rest), first)


def check(theirs, text: str) -> None:
    ids = OURS.encode(text)
    assert theirs(text, split_special_tokens=True)["input_ids"] == ids
    assert theirs(text)["input_ids"] == theirs.encode(text) == with_special_tokens(text)
    assert theirs.decode(ids) == text


@pytest.mark.parametrize("text", [*CORNERS, EOT_TEXT, f"a {EOT_TEXT} b{EOT_TEXT}\n{EOT_TEXT}{EOT_TEXT}", EOT_TEXT[:-1]])
def test_corner_cases(theirs, text):
    check(theirs, text)


@settings(max_examples=200, deadline=None)
@given(text=TEXTS)
def test_any_text(theirs, text):
    check(theirs, text)


def test_what_it_says_of_itself(theirs):
    assert (len(theirs), theirs.vocab_size, theirs.model_max_length, theirs.is_fast) == (50257, 50257, 64, True)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.unk_token_id, theirs.pad_token) == (EOT, EOT, EOT, None)
    assert theirs.convert_tokens_to_ids(EOT_TEXT) == EOT
    assert theirs.decode([*OURS.encode("a b"), EOT], skip_special_tokens=True) == "a b"


@pytest.mark.parametrize("kept", [("tokenizer.json",), ("vocab.json", "merges.txt")])
def test_either_kind_of_file_is_enough(folder, tmp_path, kept):
    transformers = pytest.importorskip("transformers")
    for name in (*kept, "tokenizer_config.json", "config.json"):
        shutil.copy(folder / name, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in CORNERS:
        check(theirs, text)


def test_the_tokenizers_library_opens_it(folder):
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in CORNERS:
        assert theirs.encode(text).ids == with_special_tokens(text)


def test_names_are_all_that_is_written(folder):
    assert {file.name for file in folder.iterdir()} == {*huggingface_tokenizer.NAMES, "config.json"}
    assert json.loads((folder / "tokenizer_config.json").read_text())["model_max_length"] == 64


def test_where_no_folder_can_be(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(GPT2LabError, match="file"):
        OURS.save_pretrained(tmp_path / "file")
