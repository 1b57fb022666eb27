"""`rayfuse version`: print the installed versions, from package metadata, without importing a package."""

import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

import click

from rayfuse import __version__
from rayfuse.cli.output import json_option, print_result
from rayfuse.formatting import table

PACKAGES = (
    "torch",
    "ray",
    "deepspeed",
    "transformers",
    "peft",
    "mlflow",
    "mlflow-skinny",
    "fastapi",
    "pandas",
    "pyarrow",
    "numpy",
    "pydantic",
)


@click.command()
@json_option
def version() -> None:
    """Print the versions of Rayfuse, Python and the main dependencies."""
    packages = {name: _installed(name) for name in PACKAGES}
    data = {"rayfuse": __version__, "python": platform.python_version(), "packages": packages}
    rows = [("rayfuse", __version__), ("python", platform.python_version()), *packages.items()]
    print_result(data, table(["package", "version"], rows))


def _installed(package: str) -> str | None:
    try:
        return installed(package)
    except PackageNotFoundError:
        return None
