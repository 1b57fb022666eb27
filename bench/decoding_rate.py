"""Rate of the decoder compared with `generate` of transformers, alone and with eight callers, on the same model.

Prompts have 64 different tokens, replies 48. The sides alternate, and rates are per second of processor time, so that
other load affects all sides alike. Greedy tokens must be equal.

python bench/decoding_rate.py FOLDER     of a causal model, such as SmolLM2-135M-Instruct; ROUNDS is the number of turns
"""

import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

ROUNDS = int(os.environ.get("ROUNDS", "3"))
PROMPT, REPLY, CALLERS = 64, int(os.environ.get("REPLY", "48")), 8
ALONE_LIMIT, SHARED_LIMIT, FIRST_TOKEN_LIMIT = 0.95, 3.5, 0.3


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
