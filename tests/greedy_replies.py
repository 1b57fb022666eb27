"""Prompts, and their greedy replies by `generate` and by a decoder."""

import torch

PROMPT_LENGTHS = [9, 3, 14, 5, 20]
REPLY_LENGTHS = [20, 5, 30, 12, 8]


def prompts(lengths=PROMPT_LENGTHS):
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, 250, (length,), generator=generator).tolist() for length in lengths]


def expected(model, prompt, count, **inputs):
    inputs = inputs or {"input_ids": torch.tensor([prompt])}
    reply = model.generate(**inputs, max_new_tokens=count, do_sample=False)
    start = len(prompt) if "input_ids" in inputs else 0
    return reply[0, start:].tolist()


def replies(decoder, requests, every=3):
    """Submit a request every few steps; return the tokens of each."""
    pieces, ids, waiting, steps = {}, [], list(requests), 0
    while waiting or decoder.busy:
        if waiting and steps % every == 0:
            ids.append(decoder.submit(waiting.pop(0)))
        steps += 1
        for request_id, piece in decoder.step():
            pieces.setdefault(request_id, []).extend(piece.token_ids)
    return [pieces[request_id] for request_id in ids]
