"""The command line as a whole: help, exit codes, `--json`, and errors."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest

from rayfuse import __version__, cli, errors
from rayfuse.cli import COMMANDS, main
from rayfuse.cli.output import json_option, print_result
from rayfuse.signals import TerminationSignal


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Replace the command `train` by a function."""

    def install(body: Callable[[], None]) -> None:
        command = click.command("train")(json_option(body))
        monkeypatch.setattr(cli._CommandGroup, "get_command", lambda self, ctx, name: command)

    return install


def raising(error: BaseException) -> Callable[[], None]:
    def body() -> None:
        raise error

    return body


def last_line(text: str) -> Any:
    return json.loads(text.splitlines()[-1])


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {verb} " in out for verb in COMMANDS)


def test_no_command_prints_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Commands:" in captured.err


def test_version_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"rayfuse {__version__}\n"


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == (
        "error: No such command 'trian'. Did you mean 'train'?\nTry `rayfuse --help`.\n"
    )


def test_unknown_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--jsn"]) == 2
    assert capsys.readouterr().err == (
        "error: No such option '--jsn'. Did you mean '--json'?\nTry `rayfuse version --help`.\n"
    )


def test_invalid_options_are_reported_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["version", "--wrong", "--json"]) == 2
    captured = capsys.readouterr()
    error = last_line(captured.out)["error"]
    assert (error["type"], error["exit_code"]) == ("NoSuchOption", 2)
    assert captured.err.startswith("error: No such option '--wrong'")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.RayfuseError("the disk is full"), 1),
        (errors.DataError("no rows"), 1),
        (errors.SpecError("x.yaml: name: missing\nx.yaml: data: missing"), 2),
        (errors.GateRejectedError("accuracy fell"), 3),
        (errors.UnavailableError("no answer"), 4),
        (errors.RunInterruptedError("stopped after epoch 3"), 130),
    ],
)
def test_expected_errors_have_a_message_and_an_exit_code(
    verb: Any, error: errors.RayfuseError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    verb(raising(error))
    assert main(["train"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == f"error: {error}\n"

    assert main(["train", "--json"]) == code
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "error": {"type": type(error).__name__, "message": str(error), "exit_code": code}
    }
    assert captured.err == f"error: {error}\n"


def test_errors_of_ray_workers_have_the_class_of_rayfuse(
    verb: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    class RayTaskError(Exception):
        pass

    class Both(RayTaskError, errors.GateRejectedError):
        pass

    verb(raising(Both("accuracy fell")))
    assert main(["train", "--json"]) == 3
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "GateRejectedError"


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (click.Abort(), 130), (TerminationSignal(15), 143)]
)
def test_interrupts(verb: Any, error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    verb(raising(error))
    assert main(["train"]) == code
    assert capsys.readouterr().err == "error: interrupted\n"
    assert main(["train", "--json"]) == code
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == code


def test_a_bug_keeps_its_traceback(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    verb(raising(ZeroDivisionError("by zero")))
    assert main(["train", "--json"]) == 1
    captured = capsys.readouterr()
    assert "Traceback (most recent call last)" in captured.err
    assert "in body" in captured.err
    assert json.loads(captured.out) == {
        "error": {"type": "ZeroDivisionError", "message": "by zero", "exit_code": 1}
    }


@pytest.mark.parametrize(
    ("module", "remedy"),
    [
        ("ray", "`pip install 'rayfuse[train]'`"),
        ("mlflow.pyfunc", "`pip install 'rayfuse[train]'`"),
        ("fastapi", "`pip install 'rayfuse[serve]'`"),
        ("mlxtend", "`pip install 'rayfuse[demo]'`"),
        ("torch", "`pip install torch`"),
        ("sqlalchemy", "MLFLOW_TRACKING_URI"),
    ],
)
def test_missing_extras_have_a_remedy(
    verb: Any, module: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    verb(raising(ModuleNotFoundError(f"No module named '{module}'", name=module)))
    assert main(["train"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(
        f"error: `rayfuse train` requires {module.partition('.')[0]}, which is not installed; "
    )
    assert remedy in err


def test_serving_requires_its_extra(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    verb(raising(ModuleNotFoundError("No module named 'ray'", name="ray")))
    assert main(["serve"]) == 2
    assert "rayfuse[serve]" in capsys.readouterr().err


def test_a_missing_module_of_rayfuse_is_a_bug(verb: Any, capsys: pytest.CaptureFixture[str]) -> None:
    verb(raising(ModuleNotFoundError("No module named 'rayfuse.nope'", name="rayfuse.nope")))
    assert main(["train"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_only_the_result_is_on_standard_output_with_json(
    verb: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def body() -> None:
        print("a library chats")
        print_result({"answer": 42}, "The answer is 42.")
        print("and chats on")

    verb(body)
    assert main(["train", "--json"]) == 0
    captured = capsys.readouterr()
    assert captured.out == '{"answer": 42}\n'
    assert captured.err == "a library chats\nand chats on\n"

    assert main(["train"]) == 0
    assert capsys.readouterr().out == "a library chats\nThe answer is 42.\nand chats on\n"


def test_child_processes_and_file_descriptors_do_not_write_to_standard_output(tmp_path: Path) -> None:
    script = tmp_path / "chatty.py"
    script.write_text(
        "import os, subprocess, sys, click\n"
        "from rayfuse import cli\n"
        "from rayfuse.cli.output import json_option, print_result\n"
        "@click.command()\n"
        "@json_option\n"
        "def train():\n"
        "    print('python')\n"
        "    os.write(1, b'descriptor\\n')\n"
        "    subprocess.run(['echo', 'child'])\n"
        "    print_result({'answer': 42}, 'text')\n"
        "    print('late')\n"
        "cli._CommandGroup.get_command = lambda *_: train\n"
        "sys.exit(cli.main())\n"
    )
    done = subprocess.run(
        [sys.executable, str(script), "train", "--json"], capture_output=True, text=True, check=True
    )
    assert done.stdout == '{"answer": 42}\n'
    assert sorted(done.stderr.splitlines()) == ["child", "descriptor", "late", "python"]


@pytest.mark.parametrize("arguments", [["schema", "job"], ["schema", "job", "--json"], ["--help"]])
def test_a_closed_standard_output_is_not_a_crash(arguments: list[str]) -> None:
    code = "import sys; from rayfuse.cli import main; input(); sys.exit(main())"
    with subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        process.stdin.write(b"go\n")
        process.stdin.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 1


def test_other_broken_pipes_are_errors(verb: Any) -> None:
    verb(raising(BrokenPipeError("the server hung up")))
    with pytest.raises(BrokenPipeError, match="hung up"):
        main(["train"])


def leaves(command: click.Command) -> list[click.Command]:
    if isinstance(command, click.Group):
        return [leaf for child in command.commands.values() for leaf in leaves(child)]
    return [command]


@pytest.mark.parametrize("verb", COMMANDS)
def test_every_command_takes_json(verb: str) -> None:
    command = cli.rayfuse.get_command(click.Context(cli.rayfuse), verb)
    assert command
    for leaf in leaves(command):
        assert "--json" in [name for parameter in leaf.params for name in parameter.opts], leaf.name
