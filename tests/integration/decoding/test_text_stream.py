"""Text from tokens: whole characters, and stop strings."""

import pytest
import random_language_models as tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from rayfuse.decoding.decoder import Decoder
from rayfuse.decoding.request import DecodeRequest, SamplingParams
from rayfuse.decoding.text_stream import Detokenizer, StopStrings

TOKENIZER = tiny.tokenizer()


def stream(ids):
    detokenizer = Detokenizer(TOKENIZER)
    pieces = [detokenizer.add(token) for token in ids]
    return [*pieces, detokenizer.finish()]


def test_a_character_of_several_tokens_comes_whole():
    ids = TOKENIZER("aé😀b").input_ids
    assert len(ids) == 8
    assert stream(ids) == ["a", "", "é", "", "", "", "😀", "b", ""]


def test_an_incomplete_character_at_the_end_is_dropped():
    ids = TOKENIZER("hello😀").input_ids
    assert "".join(stream(ids[:-1])) == "hello"


def test_special_tokens_have_no_text():
    ids = TOKENIZER("hello").input_ids
    assert "".join(stream([tiny.START, *ids, tiny.END])) == "hello"


@settings(max_examples=40)
@given(st.text(max_size=20))
def test_pieces_join_to_the_text(text):
    ids = TOKENIZER(text, add_special_tokens=False).input_ids
    pieces = stream(ids)
    assert "".join(pieces) == text.rstrip("\N{REPLACEMENT CHARACTER}")
    assert (
        all("\N{REPLACEMENT CHARACTER}" not in piece for piece in pieces)
        or "\N{REPLACEMENT CHARACTER}" in text
    )


def test_stop_strings_are_held_back_until_they_cannot_come():
    stops = StopStrings(["###", "end"])
    assert [stops.add(text) for text in ("a#", "#b", "e", "n", "x", "en", "d!")] == [
        "a",
        "##b",
        "",
        "",
        "enx",
        "",
        "",
    ]
    assert stops.found


def test_what_was_held_back_belongs_to_the_reply_if_nothing_follows():
    stops = StopStrings(["###"])
    assert (stops.add("a##"), stops.finish(), stops.found) == ("a", "##", False)


def test_the_first_stop_string_counts():
    stops = StopStrings(["b", "ab"])
    assert (stops.add("xabx"), stops.found) == ("x", True)


@given(
    st.lists(st.text("ab", max_size=4), max_size=8),
    st.lists(st.text("ab", min_size=1, max_size=3), min_size=1, max_size=3),
)
def test_stop_strings_across_any_borders(texts, stops):
    splitter = StopStrings(stops)
    reply = ""
    for text in texts:
        reply += splitter.add(text)
        if splitter.found:
            break
    reply += "" if splitter.found else splitter.finish()
    whole = "".join(texts)
    found = [whole.find(stop) for stop in stops if stop in whole]
    assert splitter.found == bool(found)
    # A shorter stop string may end before a longer one that began earlier.
    assert whole.startswith(reply)
    assert reply == whole if not found else len(reply) >= min(found)
    assert not any(stop in reply for stop in stops)


@pytest.fixture(scope="module")
def model():
    return tiny.llama()


def test_a_stop_string_ends_a_reply_in_the_middle_of_its_tokens(model):
    prompt = TOKENIZER("hello w").input_ids
    params = SamplingParams(max_tokens=30, temperature=1.5, seed=5)
    whole = Decoder(model, TOKENIZER, max_length=64).generate([DecodeRequest(prompt, params)])[0]
    stop = whole.text[5:8]
    params = SamplingParams(max_tokens=30, temperature=1.5, seed=5, stop=(stop,))
    done = Decoder(model, TOKENIZER, max_length=64).generate([DecodeRequest(prompt, params)])[0]
    assert done.finish_reason == "stop"
    assert done.text == whole.text[: whole.text.index(stop)]
    assert done.token_ids == whole.token_ids[: len(done.token_ids)]
    assert len(done.token_ids) < len(whole.token_ids)


def test_the_text_of_a_reply_is_that_of_its_tokens(model):
    params = SamplingParams(max_tokens=30, temperature=1.5, seed=1)
    done = Decoder(model, TOKENIZER, max_length=64).generate([DecodeRequest([5, 6], params)])[0]
    assert done.text == TOKENIZER.decode(done.token_ids, skip_special_tokens=True).rstrip(
        "\N{REPLACEMENT CHARACTER}"
    )
