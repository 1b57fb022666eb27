"""Choice of a token from logits, for one request at a time."""

import torch

from rayfuse.decoding.request import SamplingParams, TokenLogprob

_FIRST_CANDIDATES = 1024


class Sampler:
    """Chooses the tokens of one request with separate random numbers."""

    def __init__(self, params: SamplingParams) -> None:
        self._params = params
        self._random = torch.Generator()
        if params.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(params.seed % 2**64)

    def choose(self, logits: torch.Tensor) -> int:
        """Return a token from logits of shape (vocabulary,); those at minus infinity are never chosen."""
        if self._params.temperature == 0:
            return int(logits.argmax())
        probabilities, tokens = self._candidates(logits.double() / self._params.temperature)
        # The inverse of the distribution function: one random number per token, whatever the number of candidates.
        cumulative = probabilities.cumsum(0).cpu()
        threshold = torch.rand((), dtype=torch.float64, generator=self._random) * cumulative[-1]
        index = min(int(torch.searchsorted(cumulative, threshold, right=True)), len(cumulative) - 1)
        return int(tokens[index])

    def _candidates(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the probabilities of the tokens that may be chosen, the highest first, and their ids."""
        params = self._params
        if params.top_k == 0 and params.top_p == 1:
            return logits.softmax(0), torch.arange(len(logits))
        limit = min(params.top_k or len(logits), len(logits))
        count = min(limit, _FIRST_CANDIDATES)
        while True:
            values, tokens = logits.topk(count)
            total = logits.logsumexp(0) if limit == len(logits) else logits.topk(limit).values.logsumexp(0)
            probabilities = (values - total).exp()
            before = probabilities.cumsum(0) - probabilities
            kept = int((before < params.top_p).sum())
            if kept < count or count == limit:
                return probabilities[:kept], tokens[:kept]
            count = min(limit, count * 8)

    def logprob(self, logits: torch.Tensor, token: int) -> TokenLogprob | None:
        """Return the log-probability of a token under the model; None if the request asks for none."""
        count = self._params.top_logprobs
        if count is None:
            return None
        logprobs = logits.float().log_softmax(0)
        values, tokens = logprobs.topk(min(count, len(logprobs)))
        top = tuple(zip(tokens.tolist(), values.tolist(), strict=True))
        return TokenLogprob(token, float(logprobs[token]), top)
