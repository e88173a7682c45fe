"""The model as the peers' users have it: a scikit-learn pipeline of an encoder and LightGBM, fitted on the rows that ours was.

    python -m benchmarks.serving.peers.pipeline WHAT FOLDER       run by the Python of a peer's own environment

WHAT is how that peer keeps a model: `mlflow`, `bento`, `joblib`, `onnx` or `whole-onnx`.
"""

import sys
from pathlib import Path
from typing import Any

from benchmarks.serving.columns import CATEGORIES, COLUMNS, LABEL, MODEL, NUMBERS, STRINGS


def fit(folder: Path) -> tuple[Any, Any]:
    """The fitted pipeline, and its training rows as a data frame."""
    import lightgbm as lgb
    import pandas as pd
    from sklearn.compose import ColumnTransformer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OrdinalEncoder

    rows = pd.read_csv(folder / "train.csv")
    codes = OrdinalEncoder(categories=list(CATEGORIES.values()), handle_unknown="use_encoded_value", unknown_value=-1)
    encoder = ColumnTransformer([("strings", codes, STRINGS), ("numbers", "passthrough", list(NUMBERS))])
    return make_pipeline(encoder, lgb.LGBMClassifier(**MODEL)).fit(rows[COLUMNS], rows[LABEL]), rows[COLUMNS]


def for_mlflow(pipeline: Any, rows: Any, folder: Path) -> None:
    """An MLflow model with a signature, answering with probabilities."""
    import mlflow

    signature = mlflow.models.infer_signature(rows.head(100), pipeline.predict_proba(rows.head(100)))
    mlflow.sklearn.save_model(
        pipeline,
        str(folder / "mlflow-model"),
        signature=signature,
        pyfunc_predict_fn="predict_proba",
        serialization_format="cloudpickle",
    )


def for_bento(pipeline: Any, rows: Any, folder: Path) -> None:
    """A model in BentoML's store."""
    import bentoml

    bentoml.sklearn.save_model("flight-delay", pipeline)


def as_joblib(pipeline: Any, rows: Any, folder: Path) -> None:
    """What scikit-learn's documentation recommends, and what these peers' users do: `load` reads it."""
    import joblib

    joblib.dump(pipeline, folder / "model.joblib")


def whole_onnx(pipeline: Any, rows: Any, folder: Path) -> None:
    """The whole pipeline, as skl2onnx converts it: an input [N, 1] per column."""
    from lightgbm import LGBMClassifier
    from onnxmltools.convert.lightgbm.operator_converters.LightGbm import convert_lightgbm
    from skl2onnx import convert_sklearn, update_registered_converter
    from skl2onnx.common.data_types import FloatTensorType, StringTensorType
    from skl2onnx.common.shape_calculator import calculate_linear_classifier_output_shapes

    options = {"nocl": [True, False], "zipmap": [True, False, "columns"]}
    update_registered_converter(
        LGBMClassifier, "LightGbmLGBMClassifier", calculate_linear_classifier_output_shapes, convert_lightgbm, options=options
    )
    inputs = [(name, (StringTensorType if name in CATEGORIES else FloatTensorType)([None, 1])) for name in COLUMNS]
    graph = convert_sklearn(
        pipeline, "flight-delay", inputs, target_opset={"": 15, "ai.onnx.ml": 3}, options={id(pipeline): {"zipmap": False}}
    )
    (folder / "pipeline.onnx").write_bytes(graph.SerializeToString())


def as_onnx(pipeline: Any, rows: Any, folder: Path) -> None:
    """The trees alone, over a ready matrix float [N, 15]; whoever serves them encodes the strings."""
    import onnxmltools
    from onnxmltools.convert.common.data_types import FloatTensorType

    shape = [("features", FloatTensorType([None, len(COLUMNS)]))]
    graph = onnxmltools.convert_lightgbm(pipeline[-1], initial_types=shape, zipmap=False, target_opset=15)
    (folder / "trees.onnx").write_bytes(graph.SerializeToString())


def load(folder: Path) -> Any:
    """The pipeline out of `as_joblib`."""
    import joblib

    return joblib.load(folder / "model.joblib")


def main() -> None:
    """Fit and keep."""
    what, folder = sys.argv[1], Path(sys.argv[2])
    {"mlflow": for_mlflow, "bento": for_bento, "joblib": as_joblib, "onnx": as_onnx, "whole-onnx": whole_onnx}[what](
        *fit(folder), folder
    )


if __name__ == "__main__":
    main()
