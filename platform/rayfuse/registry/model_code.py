"""Code stored with every registered model, and run by `mlflow.pyfunc.load_model`.

It only names a class of the installed Rayfuse, so that stored models need no change when Rayfuse changes.
"""

from mlflow.models import set_model

from rayfuse.registry.pyfunc import FusedPythonModel

set_model(FusedPythonModel())
