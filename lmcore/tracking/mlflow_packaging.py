"""The finished model as an MLflow pyfunc: weights, tokenizer, code, signature and requirements in one folder."""

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmcore

if TYPE_CHECKING:
    from mlflow.models import Model, ModelSignature

CODE = Path(lmcore.__file__).parent  # goes along, so that the model needs no checkout
MODEL_CODE = CODE / "serve" / "mlflow_pyfunc.py"  # executed by MLflow, imported by nothing here: it stands floors above

# Of a request: MLflow's type, and the value where neither the request nor params.yaml has one.
PARAMETERS: dict[str, tuple[str, Any]] = {
    "max_new_tokens": ("long", 200),
    "temperature": ("double", 0.7),
    "top_k": ("long", None),
    "top_p": ("double", None),
    "min_p": ("double", None),
    "repetition_penalty": ("double", 1.0),
    "stop": ("string", []),
    "seed": ("long", 1),
}
# What the code of a served model imports; a test compares it with the imports themselves.
PACKAGES = (
    "mlflow",
    "numpy",
    "pandas",
    "pydantic",
    "regex",
    "rich",
    "ruamel.yaml",
    "safetensors",
    "tiktoken",
    "tokenizers",
    "torch",
)


def save_served_model(place: Path, artifact: Path, settings: Mapping[str, Any], model: "Model") -> None:
    """Write to the new folder `place` what `mlflow models serve` serves.

    `artifact` is the model's folder, `settings` is params.yaml by dotted names, whose sample section gives the
    defaults, and `model` MLflow's account of it, which this completes.
    """
    from mlflow.pyfunc import save_model

    save_model(
        str(place),
        python_model=str(MODEL_CODE),
        artifacts={"model": str(artifact)},
        code_paths=[str(CODE)],
        pip_requirements=list_requirements(),
        signature=describe_signature(settings),
        input_example=(["def "], {"max_new_tokens": 20, "seed": 1}),
        mlflow_model=model,
    )


def describe_signature(settings: Mapping[str, Any]) -> "ModelSignature":
    """A list of prompts and typed parameters, with the project's own values as defaults."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

    text = Schema([ColSpec("string")])
    params = []
    for name, (kind, fallback) in PARAMETERS.items():
        default = settings.get(f"sample.{name}", fallback)
        shape = (-1,) if isinstance(fallback, list) else None
        params.append(ParamSpec(name, kind, [] if shape and default is None else default, shape))
    return ModelSignature(inputs=text, outputs=text, params=ParamSchema(params))


def list_requirements() -> list[str]:
    """The installed versions, which wrote this model; without a build's own suffix, which no index has."""
    return [f"{name}=={version(name).partition('+')[0]}" for name in PACKAGES]
