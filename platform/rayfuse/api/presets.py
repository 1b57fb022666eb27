"""Presets of a job's options."""

import logging

from rayfuse.errors import SpecError
from rayfuse.spec.job import Job
from rayfuse.spec.quality import QUALITIES, Quality

_LOG = logging.getLogger(__name__)


def with_preset(job: Job, quality: Quality | None) -> Job:
    """Return a job with the values of a preset for the keys that it leaves out, and log them; None: no preset.

    The training rows are counted, and a sample of them is read. Raises SpecError for an unknown quality.
    """
    if quality is None:
        return job
    if quality not in QUALITIES:
        raise SpecError(f"quality: {quality!r} is not one of: {', '.join(QUALITIES)}")
    from rayfuse.presets import choose_preset, gather_facts

    preset = choose_preset(job, quality, gather_facts(job))
    _LOG.info("%s", preset)
    return preset.apply(job)
