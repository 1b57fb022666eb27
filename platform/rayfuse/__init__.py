"""Rayfuse: fine-tune, search, register and serve models that read several kinds of input, on Ray.

The public names load when they are used: `import rayfuse` imports neither torch nor ray nor mlflow.
"""

import importlib
from typing import TYPE_CHECKING, Any

from rayfuse import errors

__version__ = "0.1.0"

_MODULES = {
    "rayfuse.api.diagnosis": ("doctor",),
    "rayfuse.api.evaluation": ("EvaluationResult", "evaluate"),
    "rayfuse.api.export": ("ExportResult", "export"),
    "rayfuse.api.indexing": ("IndexResult", "build_index", "load_index"),
    "rayfuse.api.init": ("init",),
    "rayfuse.api.models": ("Model", "RemoteModel", "load_model"),
    "rayfuse.api.planning": ("plan",),
    "rayfuse.api.prediction": ("PredictionResult", "predict"),
    "rayfuse.api.registry": ("describe_model", "list_models", "promote", "register_voice", "rollback"),
    "rayfuse.api.serving": ("Endpoint", "list_endpoints", "serve", "stop_endpoint"),
    "rayfuse.api.submission": ("render", "submit"),
    "rayfuse.api.submitted_jobs": ("SubmittedJob", "get_job", "list_jobs"),
    "rayfuse.api.training": ("TrainResult", "train"),
    "rayfuse.api.tuning": ("SweepResult", "tune"),
    "rayfuse.registry.search": ("Index",),
    "rayfuse.spec.cluster": ("Cluster",),
    "rayfuse.spec.job": ("Job",),
    "rayfuse.spec.service": ("Service",),
    "rayfuse.spec.sweep": ("Sweep",),
}
"""Public names by module."""
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Cluster",
    "Endpoint",
    "EvaluationResult",
    "ExportResult",
    "Index",
    "IndexResult",
    "Job",
    "Model",
    "PredictionResult",
    "RemoteModel",
    "Service",
    "SubmittedJob",
    "Sweep",
    "SweepResult",
    "TrainResult",
    "__version__",
    "build_index",
    "describe_model",
    "doctor",
    "errors",
    "evaluate",
    "export",
    "get_job",
    "init",
    "list_endpoints",
    "list_jobs",
    "list_models",
    "load_index",
    "load_model",
    "plan",
    "predict",
    "promote",
    "register_voice",
    "render",
    "rollback",
    "serve",
    "stop_endpoint",
    "submit",
    "train",
    "tune",
]

if TYPE_CHECKING:
    from rayfuse.api.diagnosis import doctor
    from rayfuse.api.evaluation import EvaluationResult, evaluate
    from rayfuse.api.export import ExportResult, export
    from rayfuse.api.indexing import IndexResult, build_index, load_index
    from rayfuse.api.init import init
    from rayfuse.api.models import Model, RemoteModel, load_model
    from rayfuse.api.planning import plan
    from rayfuse.api.prediction import PredictionResult, predict
    from rayfuse.api.registry import describe_model, list_models, promote, register_voice, rollback
    from rayfuse.api.serving import Endpoint, list_endpoints, serve, stop_endpoint
    from rayfuse.api.submission import render, submit
    from rayfuse.api.submitted_jobs import SubmittedJob, get_job, list_jobs
    from rayfuse.api.training import TrainResult, train
    from rayfuse.api.tuning import SweepResult, tune
    from rayfuse.registry.search import Index
    from rayfuse.spec.cluster import Cluster
    from rayfuse.spec.job import Job
    from rayfuse.spec.service import Service
    from rayfuse.spec.sweep import Sweep


def __getattr__(name: str) -> Any:
    """Import a public name when it is used for the first time."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
