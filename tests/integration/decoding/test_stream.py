"""Streams of a decoder's thread."""

import asyncio
import gc
import threading

import pytest
import random_language_models as tiny
import torch

from rayfuse.decoding.decoder import Decoder
from rayfuse.decoding.request import DecodeRequest, SamplingParams
from rayfuse.decoding.stream import DecoderBusyError, DecoderThread
from rayfuse.errors import InvalidInputError, RayfuseError

TOKENIZER = tiny.tokenizer()
REQUEST = DecodeRequest([5, 6, 7], SamplingParams(max_tokens=20, ignore_eos=True))
LONG = DecodeRequest([5, 6], SamplingParams(max_tokens=80, ignore_eos=True))


@pytest.fixture
def model():
    return tiny.llama()


@pytest.fixture
def open_thread():
    threads = []

    def start(model, slots=2, **limits):
        threads.append(DecoderThread(Decoder(model, TOKENIZER, max_slots=slots, max_length=90), **limits))
        return threads[-1]

    yield start
    for thread in threads:
        thread.close()


def test_streams_of_many_callers_equal_their_replies_alone(model, open_thread):
    requests = [
        DecodeRequest([5, 6, seed], SamplingParams(max_tokens=15, temperature=1.0, seed=seed))
        for seed in range(6)
    ]
    wanted = Decoder(model, TOKENIZER, max_length=90).generate(requests)
    thread = open_thread(model)

    async def run():
        return await asyncio.gather(*(thread.open(request).completion() for request in requests))

    assert [done.text for done in asyncio.run(run())] == [done.text for done in wanted]


def test_pieces_come_one_by_one(model, open_thread):
    thread = open_thread(model)

    async def run():
        return [piece async for piece in thread.open(REQUEST)]

    pieces = asyncio.run(run())
    assert len(pieces) > 3
    assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]
    assert sum(len(piece.token_ids) for piece in pieces) == 20


def test_the_statistics_of_each_reply_are_observed_once(model, open_thread):
    observed = []
    thread = open_thread(model, slots=1, observe=observed.append)

    async def run():
        await thread.open(REQUEST).completion()
        pieces = aiter(thread.open(LONG))
        await anext(pieces)
        await pieces.aclose()
        await thread.open(REQUEST).completion()
        thread.decoder.step = fail
        with pytest.raises(RayfuseError, match="the model failed"):
            await thread.open(LONG).completion()

    def fail():
        raise RuntimeError("no memory")

    asyncio.run(run())
    assert [one.finish_reason for one in observed] == ["length", "cancelled", "length", "error"]
    first, cancelled, second, failed = observed
    assert (first.prompt_tokens, first.reply_tokens, first.reused_tokens) == (3, 20, 0)
    assert second.reused_tokens == 2  # the last position of a prompt is always computed
    assert 0 < cancelled.reply_tokens < 80
    assert 0 < first.first_token_seconds < first.seconds
    assert (failed.reply_tokens, failed.first_token_seconds) == (0, None)


def test_leaving_a_stream_cancels_its_request(model, open_thread):
    thread = open_thread(model, slots=1)
    cancelled = []
    cancel = thread.decoder.cancel
    thread.decoder.cancel = lambda request_id: (cancelled.append(request_id), cancel(request_id))

    async def run():
        stream = thread.open(LONG)
        pieces = aiter(stream)
        await anext(pieces)
        await pieces.aclose()
        done = await thread.open(REQUEST).completion()
        return stream.request_id, done

    request_id, done = asyncio.run(run())
    assert cancelled == [request_id]
    assert done.finish_reason == "length"
    assert thread.pending == 0


def test_dropped_streams_leave_nothing_behind(model, open_thread):
    thread = open_thread(model)

    async def drop():
        pieces = aiter(thread.open(LONG))
        await anext(pieces)
        await pieces.aclose()

    async def run():
        for _ in range(40):
            await asyncio.gather(drop(), drop())
        await thread.open(REQUEST).completion()

    asyncio.run(run())
    gc.collect()
    assert thread.pending == 0
    assert (thread.decoder.active, thread.decoder.waiting) == (0, 0)


def test_a_full_queue_refuses_requests(model, open_thread):
    thread = open_thread(model, slots=1, max_waiting=1)

    async def run():
        streams = [thread.open(LONG), thread.open(LONG)]
        with pytest.raises(DecoderBusyError, match="2 requests are pending.*takes 1 beyond the 1 slots"):
            thread.open(REQUEST)
        for stream in streams:
            stream.cancel()
        return [(await stream.completion()).finish_reason for stream in streams]

    assert set(asyncio.run(run())) == {"cancelled"}


def test_the_queue_is_limited_in_tokens(model, open_thread):
    thread = open_thread(model, max_waiting_tokens=100)

    async def run():
        stream = thread.open(LONG)
        with pytest.raises(DecoderBusyError, match="requests of 82 tokens are pending, and 23 more exceed"):
            thread.open(REQUEST)
        stream.cancel()
        await stream.completion()
        return await thread.open(REQUEST).completion()

    assert len(asyncio.run(run()).token_ids) == 20


def test_invalid_requests_raise_before_the_stream_begins(model, open_thread):
    thread = open_thread(model)

    async def run():
        with pytest.raises(InvalidInputError, match="the prompt is empty"):
            thread.open(DecodeRequest([]))

    asyncio.run(run())
    assert thread.pending == 0


def test_an_error_of_the_model_reaches_all_streams_and_the_thread_goes_on(model, open_thread):
    thread = open_thread(model)
    failing = threading.Event()
    failing.set()

    def fail(*args, **kwargs):
        if failing.is_set():
            raise RuntimeError("out of cores")

    model.register_forward_pre_hook(fail)

    async def run():
        outcomes = await asyncio.gather(
            thread.open(REQUEST).completion(), thread.open(LONG).completion(), return_exceptions=True
        )
        failing.clear()
        return outcomes, await thread.open(REQUEST).completion()

    outcomes, done = asyncio.run(run())
    assert all(isinstance(outcome, RayfuseError) and "out of cores" in str(outcome) for outcome in outcomes)
    wanted = model.generate(torch.tensor([REQUEST.prompt]), max_new_tokens=20, do_sample=False)[
        0, 3:
    ].tolist()
    assert list(done.token_ids)[: len(wanted)] == wanted


def test_closing_ends_open_streams(model):
    thread = DecoderThread(Decoder(model, TOKENIZER, max_slots=1, max_length=90))
    assert thread.is_alive

    async def run():
        stream = thread.open(LONG)
        await asyncio.to_thread(thread.close)
        done = await stream.completion()
        assert not thread.is_alive
        with pytest.raises(DecoderBusyError, match="has been closed"):
            thread.open(REQUEST)
        return done

    assert asyncio.run(run()).finish_reason in ("cancelled", "length")
