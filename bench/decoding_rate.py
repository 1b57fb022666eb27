"""Rate of the decoder compared with `generate` of transformers, alone and with eight callers, on the same model.

Prompts have 64 different tokens, replies 48. The sides alternate, and rates are per second of processor time, so that
other load affects all sides alike. Greedy tokens must be equal. Then 200 streams are opened and dropped after their
first token, and memory after the first 40 and after all is compared.

python bench/run.py generation           of the model $MODELS/smollm2-135m-instruct
python bench/decoding_rate.py FOLDER     of another causal model; ROUNDS is the number of turns
"""

import asyncio
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

ROUNDS = int(os.environ.get("ROUNDS", "3"))
PROMPT, REPLY, CALLERS = 64, int(os.environ.get("REPLY", "48")), 8
ALONE_LIMIT, SHARED_LIMIT, FIRST_TOKEN_LIMIT = 0.95, 3.5, 0.3
STREAMS, WARM_STREAMS, MEMORY_LIMIT = 200, 40, 20
MODELS = Path(os.environ.get("MODELS", Path(__file__).parents[1] / "models"))


def run_default() -> None:
    """Measure SmolLM2-135M-Instruct, if MODELS has it."""
    folder = MODELS / "smollm2-135m-instruct"
    if folder.is_dir():
        run(str(folder))
    else:
        print(f"decoding    {folder} is missing, so generation is not measured; set MODELS to its folder")


def run(folder: str) -> None:
    """Print the rates and their ratios."""
    import torch
    from transformers import AutoModelForCausalLM

    from rayfuse.decoding.decoder import Decoder
    from rayfuse.decoding.request import DecodeRequest, SamplingParams

    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto").float().eval()
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.vocab_size
    prompts = torch.randint(1000, vocabulary, (CALLERS, PROMPT), generator=generator)
    params = SamplingParams(max_tokens=REPLY, ignore_eos=True)
    requests = [DecodeRequest(prompt.tolist(), params) for prompt in prompts]
    first = DecodeRequest(requests[0].prompt, SamplingParams(max_tokens=1))
    decoder = Decoder(model, max_slots=CALLERS, max_length=PROMPT + REPLY)

    def reference() -> list[Any]:
        options = {"max_new_tokens": REPLY, "min_new_tokens": REPLY, "do_sample": False}
        return [model.generate(prompts[:1], **options)[0, PROMPT:].tolist()]

    def decoded(asked: list[DecodeRequest]) -> list[Any]:
        decoder.reset()
        return [list(done.token_ids) for done in decoder.generate(asked)]

    sides: dict[str, Callable[[], list[Any]]] = {
        "generate": reference,
        "alone": lambda: decoded(requests[:1]),
        "eight": lambda: decoded(requests),
        "first": lambda: decoded([first]),
    }
    _print(_measure(sides))
    decoder.reset()
    before, after = asyncio.run(_drop_streams(decoder, requests))
    print(
        f"decoding    {STREAMS} streams dropped  {after - before:+6.1f} MB after the first {WARM_STREAMS}, of {before:.0f} MB   "
        f"at most {MEMORY_LIMIT}"
    )


async def _drop_streams(decoder: Any, requests: list[Any]) -> tuple[float, float]:
    """Open streams and drop each after its first token; return the memory in MB after a part and after all of them."""
    from rayfuse.decoding.stream import DecoderThread

    thread, process, memory = DecoderThread(decoder), psutil.Process(), []
    for number in range(STREAMS):
        stream = thread.open(requests[number % len(requests)])
        async for _ in stream:
            break
        stream.cancel()
        while thread.pending:
            await asyncio.sleep(0.001)
        if number + 1 in (WARM_STREAMS, STREAMS):
            memory.append(process.memory_info().rss / 1e6)
    thread.close()
    return memory[0], memory[1]


def _measure(sides: dict[str, Callable[[], list[Any]]]) -> dict[str, tuple[float, float]]:
    """Return the median tokens per second of processor time and the lowest wall time of each side."""
    rates: dict[str, list[float]] = {name: [] for name in sides}
    walls: dict[str, list[float]] = {name: [] for name in sides}
    replies: dict[str, list[Any]] = {}
    for _ in range(ROUNDS):
        for name, side in sides.items():
            wall, start = time.monotonic(), time.process_time()
            replies[name] = side()
            seconds = time.process_time() - start
            rates[name].append(sum(map(len, replies[name])) / seconds)
            walls[name].append(time.monotonic() - wall)
    assert replies["generate"][0] == replies["alone"][0] == replies["eight"][0], "greedy tokens differ"
    return {name: (statistics.median(rates[name]), min(walls[name])) for name in sides}


def _print(measured: dict[str, tuple[float, float]]) -> None:
    generate, alone, eight = (measured[name][0] for name in ("generate", "alone", "eight"))
    print(f"decoding    generate            {generate:6.1f} tokens per second of processor time")
    print(
        f"decoding    decoder alone       {alone:6.1f}   {alone / generate:.2f} × generate   at least {ALONE_LIMIT}"
    )
    print(
        f"decoding    decoder, 8 callers  {eight:6.1f}   {eight / alone:.2f} × alone      at least {SHARED_LIMIT}"
    )
    first = measured["first"]
    print(
        f"decoding    first token         {first[1]:6.2f} s, of processor time {1 / first[0]:.2f} s   "
        f"at most {FIRST_TOKEN_LIMIT} s on two free cores"
    )


if __name__ == "__main__":
    run(sys.argv[1])
