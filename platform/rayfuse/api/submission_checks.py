"""Checks of what is submitted, before anything is sent."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rayfuse.errors import RayfuseError, SpecError

if TYPE_CHECKING:
    from rayfuse.spec.base import Spec
    from rayfuse.spec.job import Job

_log = logging.getLogger(__name__)


def reject_service(spec: "Spec | str", address: str) -> None:
    """Raise SpecError for a service: Ray runs it through its own dashboard, and not as a job."""
    from rayfuse.spec.load import read_kind
    from rayfuse.spec.service import Service

    if read_kind(spec) == "service" if isinstance(spec, str) else isinstance(spec, Service):
        where, file = (spec, spec) if isinstance(spec, str) else ("Service", "SERVICE")
        raise SpecError(
            f"{where}: kind: a service cannot be submitted to the address of a Ray cluster; use: "
            f"RAY_ADDRESS={address} rayfuse serve up {file}"
        )


def reject_secrets(env: Mapping[str, str]) -> None:
    """Raise SpecError for an environment variable that appears to be a secret."""
    from rayfuse.spec.base import holds_credentials
    from rayfuse.spec.pods import is_secret_name

    for name, value in env.items():
        if is_secret_name(name) or holds_credentials(value):
            raise SpecError(
                f"env {name}: appears to be a secret, which Ray would expose; set it on the cluster's nodes instead"
            )


def warn_of_rows(job: "Job") -> None:
    """Warn of first rows that would stop the job, if this machine has the files; the cluster may have others.

    URLs are left to the cluster, as this machine may lack access to them.
    """
    from rayfuse.data.ingest import split_urls
    from rayfuse.data.preview import check_first_rows

    urls = split_urls(job).values()
    paths = [path for url in urls for path in ([url] if isinstance(url, str) else url)]
    if not all(Path(path).exists() for path in paths):
        return
    try:
        check_first_rows(job)
    except RayfuseError as error:
        _log.warning("the rows at these paths on this machine cannot be used: %s", error)
