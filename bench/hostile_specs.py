"""Hostile specs: every node of the shipped specs replaced by values that break loaders, and hostile files.

    python bench/hostile_specs.py --nodes 10000 --files 300

Each is loaded in this process, as by `rayfuse plan`: it must be valid, or rejected by a SpecError of short printable
lines within 2 seconds. Values that are wrong wherever they stand, such as `true` for a number or a misspelled variable,
must be rejected. Prints the counts and the first failures of each kind, and exits with 1 if there is any.
"""

import argparse
import copy
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rayfuse.errors import SpecError
from rayfuse.spec.kinds import KINDS, spec_class
from rayfuse.spec.load import load_spec, parse_overrides
from rayfuse.spec.search_space import load_sweep
from rayfuse.spec.yaml_io import dump_yaml, load_yaml

ROOT = Path(__file__).parents[1]
MAX_SECONDS = 2.0
MAX_WALL_SECONDS = 60
MAX_LINE = 900
MAX_LINES = 30
MAX_LOADING_ERROR = 300
SHOWN = 5
Node = tuple[str | int, ...]

ALWAYS_WRONG = (
    "${RAYFUSE-API-KEYS}", "${RAYFUSE_API_KEYS", "${X-}", "$RAYFUSE_API_KEYS", "costs $5", "${UNSET_IN_TESTS}",
    '"\\e[2J"', '"a\\0b"', '"\\x7f"', '"\\ud800"', "&a [*a]", "&a {b: *a}", "*nowhere", "!!float abc", "!!int abc",
    "!!bool abc", "!!timestamp abc", "!!set [a]", "!!set {a}", "!!binary aGk=", "!!omap [a: 1]", "!!python/name:os.system",
    "!!python/object/apply:os.system [ls]", "!own x", "[" * 3000 + "]" * 3000, "9" * 6000, "-" + "9" * 30, "0x" + "f" * 400,
    "{a: 1, a: 2}", "{1: 2}", "{[a]: b}", "{null: 1}", "{<<: 3}", "[*a]", "{", "]", '"', "'", "%", "@", "`",
)  # fmt: skip
"""YAML of values that no node of any spec may have."""
NO_NUMBER = (
    "true", "false", "True", "yes", "no", "on", "off", "abc", ".nan", ".inf", "-.inf", "1e999", "[]", "{}", "[1, 2, 3]",
    "{a: 1}", "2026-13-45", "2026-01-01", "1:30", '""', '"1 2"', "~nosuchuser/x", "12 apples",
)  # fmt: skip
"""YAML of values that are no number."""
NO_MAPPING = ("5", "-1", "true", "0.5", ".nan", '""')
NO_TEXT = ("{}", "{a: b}", "{a: {b: c}}", "[[a]]", "[{}]", "[null]")
ANY = (
    "null", "~", "0", "-1", "1", "1e-300", "18446744073709551615", "a", "[]", "[a, a]", "''", "' '", "~nosuchuser/x", "/",
    "../../../../../../../../x", "s3:/x", "http://[", "https://user:password@host/x", "file:///dev/zero", "os:system", ":",
    "a:b", "a.b:C", "{type: os:system}", "{type: [a]}", "{type: {a: b}}", "{type: null}", "{type: ''}", "{type: 5}", "\u202eabc",
    "é" * 300, "x" * 5000, "$$", "$${X}", "{x: {x: {x: {x: {x: 1}}}}}", "[" + "a, " * 2000 + "]", "[1, [2, [3, [4]]]]",
    "1e3", "1_000", "0o17", "007", "=", "<<", "- a", "? a", "\"a\\nb\"", '"\\t"',
)  # fmt: skip
"""YAML of values that are right in some places."""
FREE_TEXT_MAPPINGS = (
    "env",
    "ray",
    "options",
    "trial_overrides",
    "when",
    "space",
    "inputs",
    "tasks",
    "columns",
    "node_selector",
)
"""Mappings in which a new key may be valid, or is reported otherwise."""


@dataclass(frozen=True)
class Shipped:
    """A shipped spec."""

    path: Path
    kind: str
    content: dict[str, Any]


@dataclass(frozen=True)
class Mutation:
    """A value as YAML in place of a node of a shipped spec, written into the file or passed with `--set`."""

    spec: Shipped
    node: Node
    text: str
    with_set: bool
    must_fail: bool

    def __str__(self) -> str:
        how = " (--set)" if self.with_set else ""
        return f"{self.spec.path.name} {'.'.join(map(str, self.node))} = {self.text[:60]}{how}"


@dataclass
class Outcome:
    """Failures by kind, and counts."""

    tracebacks: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)
    num_rejected: int = 0
    slowest: float = 0.0

    def failed(self) -> bool:
        """Return whether there is any failure."""
        return bool(self.tracebacks or self.hangs or self.accepted or self.messages)


def shipped_specs() -> list[Shipped]:
    """Return the specs of the folders jobs, tune, serve and k8s."""
    found = []
    for path in sorted(
        path for folder in ("jobs", "tune", "serve", "k8s") for path in (ROOT / folder).glob("*.yaml")
    ):
        with suppress(ValueError):  # manifests of Kubernetes have several documents
            content = load_yaml(path.read_text())
            if content.get("kind") in KINDS:
                found.append(Shipped(path, content["kind"], content))
    return found


def nodes_of(content: Any, path: Node = ()) -> Iterator[Node]:
    """Yield the path of every node below the top."""
    items = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    for key, value in items:
        yield (*path, key)
        yield from nodes_of(value, (*path, key))


def node_at(content: Any, path: Node) -> Any:
    """Return the node at a path."""
    for key in path:
        content = content[key]
    return content


def wrong_values(value: Any, node: Node) -> tuple[str, ...]:
    """Return YAML of values that may not stand in the place of `value`."""
    if isinstance(value, dict):
        return (*ALWAYS_WRONG, *NO_MAPPING)
    if {"choice", "grid", "options", "env"} & set(node):  # any value, by the spec alone
        return ALWAYS_WRONG
    if isinstance(value, bool) or value is None or isinstance(value, list):
        return ALWAYS_WRONG
    return (*ALWAYS_WRONG, *(NO_NUMBER if isinstance(value, int | float) else NO_TEXT))


def mutate(spec: Shipped, node: Node, choose: Callable[[Any], Any]) -> Mutation:
    """Return a mutation of a node; `choose` picks an item of a sequence."""
    value = node_at(spec.content, node)
    wrong = wrong_values(value, node)
    text = choose(choose([ALWAYS_WRONG, wrong, NO_NUMBER, NO_MAPPING, NO_TEXT, ANY, ANY]))
    with_set = choose([False, True]) and all("." not in str(key) for key in node)
    if isinstance(value, dict) and node[-1] not in FREE_TEXT_MAPPINGS and choose(range(10)) == 0:
        return Mutation(spec, (*node, "no_such_key"), "1", with_set, must_fail="labels" not in node)
    return Mutation(spec, node, text, with_set, must_fail=text in wrong)


def write(mutation: Mutation, folder: Path) -> tuple[Path, list[str]]:
    """Write a mutated spec; return its file and the values of `--set`."""
    target = folder / mutation.spec.path.name
    if mutation.with_set:
        target.write_text(mutation.spec.path.read_text())
        return target, [f"{'.'.join(map(str, mutation.node))}={mutation.text}"]
    content = copy.deepcopy(mutation.spec.content)
    node_at(content, mutation.node[:-1])[mutation.node[-1]] = "HOSTILE"
    target.write_text(dump_yaml(content, width=10**6).replace("HOSTILE", mutation.text))
    return target, []


def load(path: str, kind: str, overrides: list[str]) -> Any:
    """Load a spec as the command line does, without variables of the environment."""
    if kind == "sweep":
        return load_sweep(path, parse_overrides(overrides), {})
    return load_spec(path, spec_class(kind), parse_overrides(overrides), {})


def observe(
    name: str, call: Callable[[], Any], must_fail: bool, outcome: Outcome, is_loading_error: bool = False
) -> None:
    """Call a loader, and add what is wrong with the result to `outcome`; errors of loading have one short line."""
    started, cpu = time.monotonic(), time.process_time()
    signal.alarm(MAX_WALL_SECONDS)
    try:
        call()
        if must_fail:
            outcome.accepted.append(name)
    except SpecError as error:
        outcome.num_rejected += 1
        if problem := message_problem(str(error), is_loading_error):
            outcome.messages.append(f"{name}: {problem}: {str(error)[:200]!r}")
    except TimeoutError:
        outcome.hangs.append(f"{name}: {time.monotonic() - started:.1f} s")
    except Exception:  # noqa: BLE001 - counted
        outcome.tracebacks.append(f"{name}: {traceback.format_exc(limit=-2)}")
    finally:
        signal.alarm(0)
    seconds = time.process_time() - cpu  # other processes do not count
    outcome.slowest = max(outcome.slowest, seconds)
    if seconds > MAX_SECONDS:
        outcome.hangs.append(f"{name}: {seconds:.1f} s")


def message_problem(message: str, is_loading_error: bool = False) -> str | None:
    """Return what is wrong with an error message; None if it is fine."""
    lines = message.split("\n")
    if not all(line.isprintable() and line for line in lines):
        return "not printable"
    if any(len(line) > MAX_LINE for line in lines) or len(lines) > MAX_LINES:
        return "too long"
    if is_loading_error and len(message) > MAX_LOADING_ERROR:
        return "too long"
    return None


def hostile_files(
    folder: Path, specs: list[Shipped], number: int, seed: int
) -> Iterator[tuple[str, bool, bool]]:
    """Yield paths and URLs of hostile files: made by hand, then by random edits.

    With each, whether it must be rejected, and whether already when it is loaded.
    """
    special = special_files(folder)
    made = [*special, *(write_text(folder, i, text) for i, text in enumerate(hostile_texts(specs)))]
    num_unloadable = len(special) + len(ALWAYS_WRONG)
    yield from ((source, True, i < num_unloadable) for i, source in enumerate(made[:number]))
    generator = random.Random(seed)
    for i in range(number - len(made)):
        content = bytearray(generator.choice(specs).path.read_bytes())
        for _ in range(generator.randint(1, 3)):
            edit(content, generator)
        target = folder / f"edited-{i}.yaml"
        target.write_bytes(content)
        yield str(target), False, False


def write_text(folder: Path, number: int, content: str | bytes) -> str:
    """Write a hostile file and return its path."""
    target = folder / f"made-{number}.yaml"
    target.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
    return str(target)


def special_files(folder: Path) -> list[str]:
    """Return paths and URLs of what is no regular file, or too large."""
    os.mkfifo(folder / "pipe.yaml")
    (folder / "loop.yaml").symlink_to(folder / "loop.yaml")
    (folder / "to-pipe.yaml").symlink_to(folder / "pipe.yaml")
    with (folder / "large.yaml").open("wb") as file:
        file.truncate(50_000_000)
    (folder / "sub").mkdir()
    local = ["pipe.yaml", "loop.yaml", "to-pipe.yaml", "large.yaml", "sub", "absent.yaml", "sub/../absent"]
    return [
        *(f"{folder}/{name}" for name in local),
        *(f"file://{folder}/{name}" for name in local),
        f"simplecache::file://{folder}/pipe.yaml",
        *("/dev/zero", "/dev/null", "/dev/tty", "/proc/self/mem", "/proc/self/environ", "/proc/kmsg", "file:///dev/zero"),
        *("", ".", "/", "~", "x" * 300, "x/" * 3000, "a\0b", "\udcff", "\x1b[2J", "nosuch://x", "s3:/x", "://", "http://["),
        *("http://127.0.0.1:1/x.yaml", "memory://absent.yaml", "data:text/yaml,kind: job", "::", "a::b://c", "zip://a::b"),
    ]  # fmt: skip


def hostile_texts(specs: list[Shipped]) -> Iterator[str | bytes]:
    """Yield contents of files that are no specs."""
    job = next(spec for spec in specs if spec.kind == "job").path.read_text()
    aliases = (f"b{i}: &b{i} [{','.join([f'*b{i - 1}'] * 9)}]\n" for i in range(1, 30))
    yield from (f"{job}\nz: {text}\n" for text in ALWAYS_WRONG)
    yield from (f"{job}\n{text}: 1\n" for text in ALWAYS_WRONG)
    yield f"{job}b0: &b0 [lol]\n{''.join(aliases)}"
    yield f"{job}a0: &a0 {{k: v}}\n" + "".join(
        f"a{i}: &a{i} {{<<: *a{i - 1}, k{i}: *a{i - 1}}}\n" for i in range(1, 200)
    )
    yield from (job + "z: " + opening * 300_000 for opening in "[{(-?!&*|>'\"#%@`")
    yield from (
        job + "z: [" + item * (900_000 // len(item)) + "]"
        for item in ("1,", "a: b,", "[],", "{},", "*a,", "!t x,")
    )
    yield from (job + f"k{letter}" * 200_000 + ": 1\n" for letter in "xé\t")
    yield job + "".join(f"unknown_{i}: 1\n" for i in range(40_000))
    yield job + "".join(f"epochs{i}: {{a: b}}\n" for i in range(20_000))
    yield from (
        job.replace("kind: job", text)
        for text in ("", "kind: [job]", "kind: {a: b}", "kind: null", "kind: true")
    )
    yield from (
        job + text
        for text in ("---\n" + job, "...\nx: 1\n", "\tz: 1\n", "z: 1\nz: 2\n", "? z\n", "- z\n", "z\n")
    )
    yield from (
        "",
        "\n",
        "# x\n",
        "a",
        "- a",
        "[]",
        "{}",
        "null",
        "5",
        "\ufeff",
        "\0" * 1000,
        "\x1b[2J: 1",
        "a: \x85",
        "%YAML 9.9\n---\n" + job,
    )
    yield from (
        b"\xff\xfe" + job.encode("utf-16-le"),
        b"\x80" * 1000,
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 10,
        b"PK\3\4" * 99,
    )


def edit(content: bytearray, generator: random.Random) -> None:
    """Change some bytes at a random place: delete, repeat, insert a token, or flip bits."""
    place = generator.randrange(len(content) + 1)
    kind = generator.randrange(5)
    if kind == 0:
        del content[place : place + generator.randint(1, 30)]
    elif kind == 1:
        content[place:place] = content[place : place + 40] * generator.randint(1, 20)
    elif kind == 2:
        content[place:place] = generator.choice(
            [*ALWAYS_WRONG, *ANY, "\n", ": ", "{", "}", ", ", "- ", "# "]
        ).encode("utf-8", "replace")
    elif kind == 3 and place < len(content):
        content[place] ^= 1 << generator.randrange(8)
    else:
        content[place:] = b""
    content[:] = content or b"x"


def run_nodes(number: int, seed: int, outcome: Outcome) -> None:
    """Load `number` mutated specs: every node in turn, with random values."""
    generator = random.Random(seed)
    specs = shipped_specs()
    nodes = [(spec, node) for spec in specs for node in nodes_of(spec.content)]
    with tempfile.TemporaryDirectory() as folder:
        for spec in specs:  # the job of a sweep
            (Path(folder) / spec.path.name).write_text(spec.path.read_text())
        for i in range(number):
            spec, node = nodes[i % len(nodes)]
            mutation = mutate(spec, node, generator.choice)
            path, overrides = write(mutation, Path(folder))
            observe(
                str(mutation),
                lambda p=path, k=spec.kind, o=overrides: load(str(p), k, o),  # type: ignore[misc]
                mutation.must_fail,
                outcome,
            )
            path.write_text(spec.path.read_text())


def run_files(number: int, seed: int, outcome: Outcome) -> None:
    """Load `number` hostile files as jobs."""
    with tempfile.TemporaryDirectory() as folder:
        for source, must_fail, is_loading in hostile_files(Path(folder), shipped_specs(), number, seed):
            observe(
                source[:80],
                lambda s=source: load(s, "job", []),  # type: ignore[misc]
                must_fail,
                outcome,
                is_loading,
            )


def _time_out(*_: object) -> None:
    raise TimeoutError


def report(title: str, outcome: Outcome) -> None:
    """Print the counts and the first failures of each kind."""
    kinds = {
        "tracebacks": outcome.tracebacks,
        f"hangs above {MAX_SECONDS:g} s": outcome.hangs,
        "wrongly accepted": outcome.accepted,
        "messages not short or printable": outcome.messages,
    }
    counts = ", ".join(f"{len(found)} {name}" for name, found in kinds.items())
    print(f"{title}: {outcome.num_rejected} rejected, {counts}; slowest {outcome.slowest:.2f} s of CPU time")
    for name, found in kinds.items():
        for line in found[:SHOWN]:
            print(f"  {name}: {line!r}")


def main() -> int:
    """Run both parts, and return 1 if anything failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    signal.signal(signal.SIGALRM, _time_out)
    nodes, files = Outcome(), Outcome()
    run_nodes(given.nodes, given.seed, nodes)
    report(f"{given.nodes} mutated nodes of {len(shipped_specs())} specs", nodes)
    run_files(given.files, given.seed, files)
    report(f"{given.files} hostile files", files)
    return int(nodes.failed() or files.failed())


if __name__ == "__main__":
    sys.exit(main())
