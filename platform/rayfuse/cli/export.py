"""`rayfuse export MODEL --peft|--merged|--onnx --output FOLDER`: a model or its encoders for other tools."""

from typing import Literal

import click

from rayfuse.cli import output


@click.command()
@click.argument("model")
@click.option(
    "--merged",
    "layout",
    flag_value="merged",
    default="merged",
    help="Write Hugging Face folders with merged adapters, for AutoModel (the default).",
)
@click.option(
    "--peft", "layout", flag_value="peft", help="Write the adapters as PEFT folders, for PeftModel."
)
@click.option(
    "--onnx",
    "layout",
    flag_value="onnx",
    help="Write the whole model as an ONNX graph, with model.json, which describes it.",
)
@click.option(
    "--output",
    "target",
    metavar="FOLDER",
    required=True,
    help="Folder; each encoder is written to FOLDER/INPUT, an ONNX graph to FOLDER.",
)
@click.option(
    "--tracking-uri",
    "tracking_uri",
    metavar="URI",
    help="MLflow tracking URI for models:/…; by default MLFLOW_TRACKING_URI, else runs/mlflow.db.",
)
@output.json_option
def export(
    model: str, layout: Literal["peft", "merged", "onnx"], target: str, tracking_uri: str | None
) -> None:
    """Write MODEL as an ONNX graph, or its pretrained encoders, as trained, for PEFT or transformers.

    MODEL is models:/NAME@ALIAS, models:/NAME/VERSION or a model folder.
    """
    from rayfuse.api import export as exporting

    result = exporting.export(model, target, layout, tracking_uri=tracking_uri)
    output.print_result(result.to_dict(), str(result))
