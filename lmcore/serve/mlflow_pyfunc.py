"""The trained model for MLflow's model serving: prompts in, texts out, decoded as by `lmcore sample`."""

from pathlib import Path
from typing import Any

import pandas
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from lmcore.errors import LmcoreError
from lmcore.generate.params import SampleParams
from lmcore.generate.samples import draw_samples
from lmcore.model.save_load import load_model
from lmcore.params import parse_section
from lmcore.tokenizer.load import load_tokenizer


class TextGenerator(PythonModel):
    """A model's folder, loaded once; MLflow checks the request against the signature before it comes here."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the model that was logged, to the GPU if there is one."""
        folder = Path(context.artifacts["model"])
        self.model = load_model(folder, "cuda" if torch.cuda.is_available() else "cpu")
        self.tokenizer = load_tokenizer(folder)

    def predict(
        self,
        context: PythonModelContext,  # noqa: ARG002
        model_input: pandas.DataFrame,  # of the hints that MLflow knows, the one that leaves the signature alone
        params: dict[str, Any] | None = None,
    ) -> list[str]:
        """Return every prompt with its continuation: the first sample of `lmcore sample` with the same parameters.

        `model_input` is a table with one row per prompt, in the first column. Raises MlflowException, of which the
        server makes status 400, for what is not text and for a parameter out of range.
        """
        prompts = [row[0] for row in model_input.itertuples(index=False)]
        if wrong := [prompt for prompt in prompts if not isinstance(prompt, str)]:
            raise MlflowException.invalid_parameter_value(f"a prompt must be text, not {wrong[0]!r}")
        once = list(dict.fromkeys(prompts))
        fixed = {"samples_per_prompt": 1, "draft_tokens": None, "decoder": "plain", "weights": "float32"}
        try:
            wanted = parse_section(SampleParams, "params", {**(params or {}), "prompts": once, **fixed})
            samples, _ = draw_samples(self.model, self.tokenizer, wanted)
        except LmcoreError as error:
            raise MlflowException.invalid_parameter_value(str(error)) from None
        texts = {prompt: sample.text for prompt, sample in zip(once, samples, strict=True)}
        return [texts[prompt] for prompt in prompts]


set_model(TextGenerator())
