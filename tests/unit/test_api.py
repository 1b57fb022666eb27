"""The public names of `import rayfuse`."""

import importlib
import inspect
import subprocess
import sys

import pytest

import rayfuse

HEAVY = ("torch", "ray", "mlflow", "transformers", "numpy", "pandas", "pyarrow", "pydantic")


def test_import_is_light() -> None:
    code = f"import rayfuse, sys; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", [name for name in rayfuse.__all__ if name not in ("__version__", "errors")])
def test_every_public_name_loads_and_is_documented(name: str) -> None:
    value = getattr(rayfuse, name)
    assert callable(value), f"rayfuse.{name} is hidden by a module of the same name"
    assert inspect.getdoc(value)


def test_functions_are_not_hidden_by_packages_of_the_same_name() -> None:
    for module in ("rayfuse.pipeline", "rayfuse.tuning.sweep", "rayfuse.serving.deploy"):
        importlib.import_module(module)
    assert callable(rayfuse.train)
    assert callable(rayfuse.tune)
    assert callable(rayfuse.serve)


def test_unknown_names() -> None:
    assert set(rayfuse.__all__) <= set(dir(rayfuse))
    with pytest.raises(AttributeError, match="has no attribute 'trian'"):
        rayfuse.trian  # noqa: B018
