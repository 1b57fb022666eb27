"""The code that MLflow keeps with every registered model, and runs in `mlflow.pyfunc.load_model`.

It names a class of the installed Rayfuse and holds nothing else, so that models need no change when Rayfuse does.
"""

from mlflow.models import set_model

from rayfuse.registry.pyfunc import FusedPythonModel

set_model(FusedPythonModel())
