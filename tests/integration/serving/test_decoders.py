"""Files are decoded in processes, which end alone at a file that takes too much memory or time."""

import io
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import costly_inputs
import numpy as np
import pytest
from pydantic import TypeAdapter

from rayfuse.errors import InvalidInputError, MissingInputError, ResourceError
from rayfuse.modalities import Modality, build_modality
from rayfuse.serving.decode_budgets import CpuBudget
from rayfuse.serving.decoders import Decoders
from rayfuse.spec.inputs import Input, default_columns

MEMORY = 1_000_000_000
PIXEL = costly_inputs.png(1, 1, 8, 0)
OPTIONS = TypeAdapter(dict[str, Input]).validate_python(default_columns(costly_inputs.inputs()))
NAMES = ("image", "audio", "timeseries")


@pytest.fixture(scope="module")
def others() -> set[int]:
    """Return the processes that other tests have started."""
    return children(os.getpid())


@pytest.fixture(scope="module")
def decoders(others: set[int]) -> Iterator[Decoders]:
    found = Decoders({name: OPTIONS[name] for name in NAMES}, num_processes=2, max_memory=MEMORY)
    yield found
    found.close()


@pytest.fixture(scope="module")
def modalities() -> dict[str, Modality]:
    return {name: build_modality(options) for name, options in OPTIONS.items()}


def children(pid: int) -> set[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return {int(child) for task in tasks for child in task.read_text().split()}


def processes() -> set[int]:
    """Return the parents and forks that this process has started."""
    parents = children(os.getpid())
    return parents.union(*map(children, parents))


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def cpu_ticks(pid: int) -> int:
    """Return the CPU time of a fork in hundredths of a second."""
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))


@pytest.mark.parametrize("name", NAMES)
def test_results_are_those_of_this_process(
    name: str, decoders: Decoders, modalities: dict[str, Modality]
) -> None:
    modality = modalities[name]
    content = b"1,2\n3,4\n" if name == "timeseries" else modality.example()
    found = modality.process_arrays(decoders.decode(name, content, CpuBudget(10)))
    wanted = modality.process(modality.decode(content))
    assert found.keys() == wanted.keys()
    for feature, array in wanted.items():
        np.testing.assert_array_equal(found[feature], array)
        assert found[feature].dtype == array.dtype
        assert found[feature].flags.writeable


def test_the_first_file_of_a_process_may_be_of_any_format() -> None:
    """Libraries of its format and sample rate were imported within the memory of the file: a valid clip was rejected."""
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(16_000) / 10), 16_000, format="MP3")
    sound = {"type": "audio", "sample_rate": 8000, "max_seconds": 0.5, "encoder": {"type": "conv"}}
    options = TypeAdapter(dict[str, Input]).validate_python(default_columns({"sound": sound}))
    decoders = Decoders(options, num_processes=1, max_memory=MEMORY)
    try:
        [samples] = decoders.decode("sound", file.getvalue(), CpuBudget(10)).values()
    finally:
        decoders.close()
    assert len(samples) == pytest.approx(4000, abs=1)


def test_errors_are_those_of_this_process(decoders: Decoders) -> None:
    with pytest.raises(InvalidInputError, match="not a readable image: unknown format"):
        decoders.decode("image", b"a text", CpuBudget(10))
    with pytest.raises(MissingInputError, match="the time series has no values"):
        decoders.decode("timeseries", b"[[null], [null]]", CpuBudget(10))


def test_memory_above_the_limit_is_rejected_before_it_is_taken(decoders: Decoders) -> None:
    with pytest.raises(InvalidInputError, match="takes 1.77 GB of memory to decode; the maximum is 872 MB"):
        decoders.decode("image", costly_inputs.webp(), CpuBudget(10))
    decoders.limit_memory(200_000_000)
    with pytest.raises(InvalidInputError, match="the maximum is 150 MB"):
        decoders.decode("image", costly_inputs.png(6000, 6000, 1, 0), CpuBudget(10))
    decoders.limit_memory(MEMORY)


def test_a_process_that_needs_much_memory_is_replaced(decoders: Decoders) -> None:
    before = processes()
    decoders.decode("image", costly_inputs.png(6000, 6000, 1, 0), CpuBudget(10))
    decoders.decode("image", PIXEL, CpuBudget(10))
    assert processes() != before


def test_cpu_time_is_limited(decoders: Decoders) -> None:
    with pytest.raises(InvalidInputError, match="takes more than 0.2 s of CPU time to decode"):
        decoders.decode("timeseries", costly_inputs.csv_cells(), CpuBudget(0.2))
    decoders.decode("timeseries", b"1,2\n", CpuBudget(0.2))


def test_a_crash_is_an_error_of_the_file(decoders: Decoders, others: set[int]) -> None:
    decoders.decode("image", PIXEL, CpuBudget(10))
    [parent] = children(os.getpid()) - others

    def crash() -> None:
        while not (busy := [pid for pid in children(parent) if cpu_ticks(pid) > 30]):
            time.sleep(0.01)
        os.kill(busy[0], signal.SIGSEGV)

    thread = threading.Thread(target=crash, daemon=True)
    thread.start()
    with pytest.raises(InvalidInputError, match="the file cannot be decoded: it makes its decoder crash"):
        decoders.decode("timeseries", costly_inputs.csv_cells(), CpuBudget(10))
    thread.join()


def test_processes_that_have_ended_are_replaced(decoders: Decoders, others: set[int]) -> None:
    decoders.decode("image", PIXEL, CpuBudget(10))
    [parent] = children(os.getpid()) - others
    for victims in (children(parent), {parent}):
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        while any(map(is_running, victims)):
            time.sleep(0.01)
        for _ in range(3):
            decoders.decode("image", PIXEL, CpuBudget(10))


def test_processes_end_with_the_decoders() -> None:
    short = Decoders({"image": OPTIONS["image"]}, num_processes=1, max_memory=MEMORY)
    before = processes()
    short.decode("image", PIXEL, CpuBudget(10))
    assert len(processes() - before) == 2
    short.close()
    while processes() - before:
        time.sleep(0.01)


def test_processes_have_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "planted")
    before = processes()
    short = Decoders({"image": OPTIONS["image"]}, num_processes=1, max_memory=MEMORY)
    short.start()
    [parent] = processes() - before
    assert b"planted" not in Path(f"/proc/{parent}/environ").read_bytes()
    short.close()


def test_a_process_that_cannot_start_is_an_error_of_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(ResourceError, match="cannot be started"):
        Decoders({"image": OPTIONS["image"]}, num_processes=1, max_memory=MEMORY).start()


def test_inputs_without_files_need_no_process() -> None:
    before = processes()
    Decoders({}, num_processes=2, max_memory=MEMORY).start()
    assert processes() == before
