"""Sockets that processes listen on."""

from collections.abc import Iterable

import psutil

LOOPBACK = {"127.0.0.1", "::1", "::ffff:127.0.0.1"}


def addresses(processes: Iterable[psutil.Process]) -> set[tuple[str, str]]:
    """Return (name, address) of each process that listens; processes may end meanwhile."""
    return {(name, ip) for process in processes for name, ip in _addresses(process)}


def beyond_loopback(found: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
    """Return those of `addresses` that are reachable from other machines."""
    return {(name, ip) for name, ip in found if ip not in LOOPBACK}


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants; none if it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _addresses(process: psutil.Process) -> list[tuple[str, str]]:
    try:
        name, found = process.name(), process.net_connections("tcp")
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []
    return [(name, connection.laddr.ip) for connection in found if connection.status == psutil.CONN_LISTEN]
