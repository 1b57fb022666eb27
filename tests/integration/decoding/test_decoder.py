"""Schedule, limits and parameters of the decoder."""

import pytest
import random_language_models as tiny
import torch
from greedy_replies import expected, prompts, replies

from rayfuse.decoding.decoder import Decoder
from rayfuse.decoding.request import DecodeRequest, SamplingParams
from rayfuse.errors import InvalidInputError, RayfuseError, ResourceError


def test_prompts_that_begin_alike_reuse_keys_and_values():
    model = tiny.llama()
    system = prompts([30])[0]
    asked = [[*system, *tail] for tail in ([5, 6, 7], [8], [5, 6, 9, 10])]
    decoder = Decoder(model, max_slots=2, max_length=64)
    done = [decoder.generate([DecodeRequest(prompt, SamplingParams(max_tokens=8))])[0] for prompt in asked]
    assert [each.reused_tokens for each in done] == [0, 30, 32]
    assert [list(each.token_ids) for each in done] == [expected(model, prompt, 8) for prompt in asked]


def test_two_system_prompts_in_turn_are_both_kept():
    model = tiny.llama()
    systems = prompts([20, 22])
    decoder = Decoder(model, max_slots=3, max_length=64)
    params = SamplingParams(max_tokens=6)
    reused = []
    for turn in range(6):
        prompt = [*systems[turn % 2], turn, 5]
        done = decoder.generate([DecodeRequest(prompt, params)])[0]
        assert list(done.token_ids) == expected(model, prompt, 6)
        reused.append(done.reused_tokens)
    assert reused == [0, 0, 20, 22, 20, 22]


def test_equal_soft_tokens_are_reused_and_different_ones_are_not():
    model = tiny.llama()
    soft = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
    params = SamplingParams(max_tokens=4)
    decoder = Decoder(model, max_length=40)
    decoder.generate([DecodeRequest([soft, [4, 5]], params)])
    same, other = decoder.generate(
        [DecodeRequest([soft.clone(), [4, 6]], params), DecodeRequest([soft + 1, [4, 6]], params)]
    )
    assert (same.reused_tokens, other.reused_tokens) == (7, 0)


def test_seeds_give_the_same_reply_whoever_shares_the_batch():
    model = tiny.llama()
    prompt, *others = prompts()
    request = DecodeRequest(prompt, SamplingParams(max_tokens=20, temperature=1.0, top_p=0.9, seed=3))
    noise = [DecodeRequest(each, SamplingParams(max_tokens=15, temperature=1.0)) for each in others]
    alone = Decoder(model, max_length=64).generate([request])[0]
    shared = Decoder(model, max_slots=3, max_length=64).generate([*noise[:2], request, *noise[2:]])[2]
    other_seed = DecodeRequest(prompt, SamplingParams(max_tokens=20, temperature=1.0, top_p=0.9, seed=4))
    assert shared.token_ids == alone.token_ids
    assert Decoder(model, max_length=64).generate([other_seed])[0].token_ids != alone.token_ids


def test_end_tokens_of_the_generation_config_end_the_reply():
    model = tiny.llama()
    prompt = prompts()[0]
    first = expected(model, prompt, 10)
    model.generation_config.eos_token_id = [tiny.END, first[4]]
    done = Decoder(model, max_length=32).generate([DecodeRequest(prompt, SamplingParams(max_tokens=10))])[0]
    assert list(done.token_ids) == first[: first.index(first[4]) + 1]
    assert done.finish_reason == "stop"
    given = Decoder(model, max_length=32, end_tokens=[first[2]])
    done = given.generate([DecodeRequest(prompt, SamplingParams(max_tokens=10))])[0]
    assert list(done.token_ids) == first[: first.index(first[2]) + 1]
    past = SamplingParams(max_tokens=10, ignore_eos=True)
    done = Decoder(model, max_length=32).generate([DecodeRequest(prompt, past)])[0]
    assert (list(done.token_ids), done.finish_reason) == (first, "length")


def test_logits_rules_of_the_generation_config():
    model = tiny.llama()
    first = expected(model, prompts()[0], 5)
    model.generation_config.repetition_penalty = 1.3
    model.generation_config.suppress_tokens = [first[0]]
    model.generation_config.no_repeat_ngram_size = 2
    asked = [(prompt, 20) for prompt in prompts()]
    requests = [DecodeRequest(prompt, SamplingParams(max_tokens=count)) for prompt, count in asked]
    wanted = [expected(model, prompt, count) for prompt, count in asked]
    assert replies(Decoder(model, max_slots=3, max_length=64), requests) == wanted
    assert wanted[0][0] != first[0]


def test_log_probabilities_are_those_of_the_model():
    model = tiny.llama()
    prompt = prompts()[0]
    params = SamplingParams(max_tokens=4, top_logprobs=3, temperature=2.0, seed=0)
    done = Decoder(model, max_length=32).generate([DecodeRequest(prompt, params)])[0]
    ids = torch.tensor([[*prompt, *done.token_ids]])
    with torch.no_grad():
        wanted = model(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    assert len(done.logprobs) == 4
    for row, logprob, token in zip(wanted, done.logprobs, done.token_ids, strict=True):
        assert logprob.token_id == token
        assert logprob.logprob == pytest.approx(float(row[token]), abs=1e-4)
        assert [top for top, _ in logprob.top] == row.topk(3).indices.tolist()


def test_a_cancelled_request_frees_its_slot_in_the_next_step():
    model = tiny.llama()
    long, other, last = (DecodeRequest(prompt, SamplingParams(max_tokens=30)) for prompt in prompts()[:3])
    decoder = Decoder(model, max_slots=2, max_length=64)
    first, second, third = (decoder.submit(request) for request in (long, other, last))
    decoder.step()
    assert (decoder.active, decoder.waiting) == (2, 1)
    decoder.cancel(first)
    events = decoder.step()
    assert [piece.finish_reason for request_id, piece in events if request_id == first] == ["cancelled"]
    assert (decoder.active, decoder.waiting) == (2, 0)
    while decoder.busy:
        events += decoder.step()
    tokens = {request_id: [] for request_id in (first, second, third)}
    for request_id, piece in events:
        tokens[request_id].extend(piece.token_ids)
    assert tokens[third] == expected(model, last.prompt, 30)
    decoder.cancel(first)
    assert decoder.step() == []


def test_replies_continue_while_a_long_prompt_is_read():
    model = tiny.llama()
    short, long = prompts([3, 60])
    decoder = Decoder(model, max_slots=2, max_length=90, prefill_tokens=8)
    first = decoder.submit(DecodeRequest(short, SamplingParams(max_tokens=30, ignore_eos=True)))
    decoder.step()
    second = decoder.submit(DecodeRequest(long, SamplingParams(max_tokens=5, ignore_eos=True)))
    steps = [[request_id for request_id, _ in decoder.step()] for _ in range(8)]
    # 60 positions at 8 a step: the eighth gives the first token, and the second in the same step.
    assert steps == [[first]] * 7 + [[second, first, second]]


def test_cancelling_one_request_leaves_the_others_as_they_were():
    model = tiny.llama()
    requests = [DecodeRequest(prompt, SamplingParams(max_tokens=20)) for prompt in prompts()]
    decoder = Decoder(model, max_slots=4, max_length=64, prefill_tokens=8)
    ids = [decoder.submit(request) for request in requests]
    tokens = {request_id: [] for request_id in ids}
    for step in range(200):
        if step in (1, 4):
            decoder.cancel(ids[step - 1])
        for request_id, piece in decoder.step():
            tokens[request_id].extend(piece.token_ids)
    for request_id, request in list(zip(ids, requests, strict=True)):
        if request_id not in (ids[0], ids[3]):
            assert tokens[request_id] == expected(model, request.prompt, 20)


def test_memory_limits_the_slots():
    model = tiny.llama()
    # 2 layers × 2 heads × 8 dimensions × keys and values × 4 bytes
    slot = 256 * 50
    assert Decoder(model, memory=3 * slot + 1, max_length=50, max_slots=8).slots == 3
    assert Decoder(model, memory=100 * slot, max_length=50, max_slots=8).slots == 8
    with pytest.raises(
        ResourceError, match=r"12\.8 kB.*raise the limit to 12\.8 kB or shorten the slot to 49 tokens"
    ):
        Decoder(model, memory=slot - 1, max_length=50)


def test_lengths_are_checked_before_a_request_is_queued():
    decoder = Decoder(tiny.llama(), max_length=20)
    with pytest.raises(InvalidInputError, match="prompt: the prompt has 21 positions, and a slot has 20"):
        decoder.submit(DecodeRequest([1] * 21))
    with pytest.raises(InvalidInputError, match="max_tokens: 8 tokens do not fit.*ask for at most 6"):
        decoder.submit(DecodeRequest([1] * 15, SamplingParams(max_tokens=8)))
    with pytest.raises(InvalidInputError, match="prompt: the prompt is empty"):
        decoder.submit(DecodeRequest([]))
    with pytest.raises(InvalidInputError, match="token id 9999 is not in the model's vocabulary"):
        decoder.submit(DecodeRequest([9999]))
    with pytest.raises(InvalidInputError, match=r"shape \(3, 7\); the model takes \(length, 32\)"):
        decoder.submit(DecodeRequest(torch.zeros(3, 7)))
    assert not decoder.busy
    done = decoder.generate([DecodeRequest([5] * 15, SamplingParams(ignore_eos=True))])[0]
    assert (len(done.token_ids), done.finish_reason) == (6, "length")


def test_a_bad_source_ends_only_its_own_request():
    decoder = Decoder(tiny.t5(), max_length=20, max_source_length=8)
    params = SamplingParams(max_tokens=5)
    bad = decoder.submit(DecodeRequest(source=torch.ones(2, 2, dtype=torch.long), params=params))
    good = decoder.submit(DecodeRequest(source=torch.ones(8, dtype=torch.long), params=params))
    events = {}
    while decoder.busy:
        for request_id, outcome in decoder.step():
            events.setdefault(request_id, []).append(outcome)
    assert isinstance(events[bad][0], InvalidInputError)
    assert "shape (2, 2) does not fit input_ids of the encoder" in str(events[bad][0])
    assert events[good][-1].finish_reason is not None


def test_a_source_that_is_too_long_is_not_queued():
    """A model with learned positions has none for its last tokens."""
    decoder = Decoder(tiny.bart(), max_length=20, max_source_length=8)
    for source in ({"source": torch.ones(9, dtype=torch.long)}, {"encoder_states": torch.ones(9, 32)}):
        with pytest.raises(
            InvalidInputError, match="the source has 9 positions, and a slot has 8; shorten it"
        ):
            decoder.submit(DecodeRequest(**source))
    assert not decoder.busy


def test_nan_ends_only_the_request_that_caused_it():
    model = tiny.llama()
    params = SamplingParams(max_tokens=8)
    decoder = Decoder(model, max_slots=2, max_length=40)
    bad = decoder.submit(DecodeRequest(torch.full((5, 32), torch.nan), params))
    good = decoder.submit(DecodeRequest(prompts()[0], params))
    tokens, errors = [], {}
    while decoder.busy:
        for request_id, outcome in decoder.step():
            if isinstance(outcome, RayfuseError):
                errors[request_id] = outcome
            else:
                tokens += outcome.token_ids
    assert list(errors) == [bad]
    assert "NaN" in str(errors[bad])
    assert good not in errors
    assert tokens == expected(model, prompts()[0], 8)
    assert [list(done.token_ids) for done in decoder.generate([DecodeRequest(prompts()[1], params)] * 2)] == [
        expected(model, prompts()[1], 8)
    ] * 2
