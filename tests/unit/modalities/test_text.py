"""Texts become bytes, or tokens of a pretrained encoder."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_encoders

from rayfuse.errors import DataError, InvalidInputError
from rayfuse.modalities.text import TextModality
from rayfuse.spec.encoders import ConvEncoderConfig, HuggingFaceEncoderConfig
from rayfuse.spec.inputs import TextInput


def modality(max_tokens: int = 8, model: Path | None = None) -> TextModality:
    encoder = (
        HuggingFaceEncoderConfig(type="huggingface", model=str(model))
        if model
        else ConvEncoderConfig(type="conv")
    )
    return TextModality(TextInput(type="text", column="text", max_tokens=max_tokens, encoder=encoder))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_encoders.bert(tmp_path_factory.mktemp("bert"))


def ids(text: str, **options: Any) -> list[int]:
    reader = modality(**options)
    features = reader.process(reader.decode(text))
    assert features["input_ids"].dtype == features["attention_mask"].dtype == np.int64
    assert features["attention_mask"].tolist() == [1] * len(features["input_ids"])
    return features["input_ids"].tolist()


def test_bytes_are_counted_from_one() -> None:
    assert ids("ab") == [98, 99]
    assert ids("é") == [0xC3 + 1, 0xA9 + 1]
    assert ids("😀") == [byte + 1 for byte in "😀".encode()]
    assert ids("\0\xff") == [1, 0xC3 + 1, 0xBF + 1]


def test_an_empty_text_is_present() -> None:
    assert ids("") == [33]
    assert modality().dummy_features()["input_ids"].tolist() == [33]


def test_long_texts_are_cut(bert: Path) -> None:
    assert len(ids("x" * 100_000)) == 8
    assert len(ids("é" * 100, max_tokens=7)) == 7
    cut = ids("red green " * 1000, max_tokens=6, model=bert)
    assert cut == [2, 12, 13, 12, 13, 3]


@pytest.mark.parametrize("value", [5, 1.5, True, b"text", {"text": "a"}])
def test_other_types_are_rejected(value: Any) -> None:
    with pytest.raises(InvalidInputError, match=f"expected a text, got {type(value).__name__}"):
        modality().decode(value)


@pytest.mark.parametrize("value", ["ab\ud800", "ab\udfffcd", "ab\ude00\ud83d"])
def test_lone_surrogates_are_rejected(value: str) -> None:
    with pytest.raises(InvalidInputError, match=r"lone surrogate \\u\w{4} at position 2; encode the"):
        modality().decode(value)


def test_padding_goes_to_the_longest_of_a_batch(bert: Path) -> None:
    for reader in (modality(), modality(model=bert)):
        batch = reader.collate(
            [reader.process("red"), reader.process("red green blue"), reader.dummy_features()]
        )
        lengths = [len(reader.process(text)["input_ids"]) for text in ("red", "red green blue", "")]
        assert batch["input_ids"].shape == batch["attention_mask"].shape == (3, max(lengths))
        assert batch["attention_mask"].sum(axis=1).tolist() == lengths
        assert (batch["input_ids"][batch["attention_mask"] == 0] == 0).all()


def test_tokens_of_a_pretrained_encoder(bert: Path) -> None:
    assert ids("which colour?", model=bert) == [2, 4, 5, 11, 3]
    assert ids("", model=bert) == [2, 3]
    assert ids("😀 zork", model=bert) == [2, 1, 1, 3]


class Silent:
    """Tokenizer without start and end tokens."""

    pad_token_id = 7

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": []}


def test_a_tokenizer_without_tokens_for_an_empty_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rayfuse.modalities.text.load_tokenizer", lambda model: Silent())
    assert modality(model=Path("any")).dummy_features()["input_ids"].tolist() == [7]


def test_one_instance_serves_many_threads(bert: Path) -> None:
    reader = modality(model=bert)
    texts = ["red", "red green", "", "blue " * 50] * 50
    with ThreadPoolExecutor(8) as pool:
        found = [features["input_ids"].tolist() for features in pool.map(reader.process, texts)]
    assert found == [reader.process(text)["input_ids"].tolist() for text in texts]


def test_a_corrupt_tokenizer_is_an_error(bert: Path, tmp_path: Path) -> None:
    for file in bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "tokenizer.json").write_text('{"version": 1')
    with pytest.raises(DataError, match="cannot load the tokenizer: "):
        modality(model=tmp_path).dummy_features()
    with pytest.raises(DataError, match="cannot load the tokenizer: "):
        modality(model=tmp_path / "absent").dummy_features()


def words(*given: str, **options: Any) -> list[tuple[str, int]]:
    """Return each word with its first token."""
    reader = modality(**options)
    features = reader.process(reader.decode(list(given)))
    assert features["word_starts"].dtype == np.int64
    assert features["input_ids"].tolist() == ids(" ".join(given), **options)
    return list(zip(given, features["word_starts"].tolist(), strict=True))


def test_word_starts_in_bytes() -> None:
    assert words("a", "dé", "b", max_tokens=32) == [("a", 0), ("dé", 2), ("b", 6)]
    assert words("abc", "de", "fg", max_tokens=5) == [("abc", 0), ("de", 4), ("fg", -1)]
    assert words("a", "", "b") == [("a", 0), ("", -1), ("b", 3)]
    assert words() == []


def test_word_starts_in_tokens(bert: Path) -> None:
    """After [CLS]; a word of several tokens starts at its first one."""
    assert words("red", "blue", "red", model=bert) == [("red", 1), ("blue", 2), ("red", 3)]
    assert words("red", "?", "red?", "red", model=bert, max_tokens=6) == [
        ("red", 1),
        ("?", 2),
        ("red?", 3),
        ("red", -1),
    ]


def test_word_starts_in_tokens_with_leading_spaces(tmp_path: Path) -> None:
    """As tokenizers of RoBERTa and GPT do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {text: number for number, text in enumerate([*letters, "re", "red", "Ġre", "Ġred"])}
    for trim in (True, False):
        found = Tokenizer(models.BPE(vocabulary, [("r", "e"), ("re", "d"), ("Ġ", "red"), ("Ġ", "re")]))
        found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        found.post_processor = processors.ByteLevel(trim_offsets=trim)
        found.decoder = decoders.ByteLevel()
        folder = tmp_path / str(trim)
        PreTrainedTokenizerFast(tokenizer_object=found).save_pretrained(folder)
        assert words("red", "red", "red?", model=folder) == [("red", 0), ("red", 1), ("red?", 2)]


def test_texts_and_lists_of_words_are_collated() -> None:
    reader = modality()
    rows = [reader.process(reader.decode(value)) for value in (["a", "b"], "ab", ["c"])]
    batch = reader.collate(rows)
    assert batch["word_starts"].tolist() == [[0, 2], [-1, -1], [0, -1]]
    assert "word_starts" not in reader.collate(rows[1:2])


@pytest.mark.parametrize("value", [["a", 5], ["a", None], [["a"]]])
def test_words_of_other_types_are_rejected(value: Any) -> None:
    with pytest.raises(InvalidInputError, match=r"word [01]: expected a text, got"):
        modality().decode(value)
