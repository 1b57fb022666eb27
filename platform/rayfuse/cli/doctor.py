"""`rayfuse doctor`: check this machine and its configuration, without starting or changing anything."""

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from rayfuse.cli.output import json_option, print_result

if TYPE_CHECKING:
    from rayfuse.api.diagnosis import CheckResult


@click.command()
@click.pass_context
@json_option
def doctor(ctx: click.Context) -> None:
    """Check Python, packages, precision, disk, memory, extension builds, MLflow and Ray's authentication.

    Nothing is started or changed. The exit code is 1 if a check fails.
    """
    from rayfuse.api import diagnosis

    results = diagnosis.doctor()
    failed = any(result.status == "fail" for result in results)
    print_result(
        {"ok": not failed, "checks": [asdict(result) for result in results]},
        "\n".join(_format_check(result) for result in results),
    )
    ctx.exit(int(failed))


def _format_check(check_result: "CheckResult") -> str:
    line = f"{check_result.status:<4}  {check_result.check}: {check_result.detail}"
    return f"{line}\n      → {check_result.remedy}" if check_result.remedy else line
