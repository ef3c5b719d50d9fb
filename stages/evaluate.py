"""evaluate: measure the model on the validation text, next to compressors and n-grams, and by benchmarks."""

from pathlib import Path

from lmcore.errors import report_errors
from lmcore.evaluate.baselines import measure_baselines
from lmcore.evaluate.breakdown import measure_text
from lmcore.evaluate.choice import measure_suites
from lmcore.evaluate.settings import EvaluateParams
from lmcore.evaluate.suites import open_suites
from lmcore.evaluate.syntax import measure_python
from lmcore.files import project_root, write_json, write_text
from lmcore.hardware import HardwareParams, claim_device
from lmcore.model.folder import load_model
from lmcore.params import read_params, read_section
from lmcore.tokenizer.load import load_tokenizer
from lmcore.tokens.dataset import open_dataset
from lmcore.tokens.verified import VERIFIED, VerifiedFiles
from lmcore.tracking.results import log_results


def main() -> None:
    params = read_section(EvaluateParams, "evaluate")
    suites = open_suites(params.suites or [])
    device = claim_device(read_section(HardwareParams, "hardware"), read_params())
    model, tokenizer = load_model(Path("models/gpt"), device), load_tokenizer(Path("models/gpt"))
    dataset = open_dataset(Path("data/tokens"), tokenizer)
    dataset.verify(VerifiedFiles(project_root() / VERIFIED))
    windows = params.windows(model.params.context_length)
    metrics, positions = measure_text(model, dataset.validation, tokenizer.byte_lengths, windows)
    metrics |= {"baselines": measure_baselines(dataset, model.params.context_length, windows)}
    metrics |= measure_suites(model, tokenizer, suites, params.max_items) | measure_python(model, tokenizer, params)
    write_text(Path("reports/plots/loss_by_position.csv"), positions)
    write_json(Path("reports/metrics/evaluate.json"), metrics)
    log_results(Path("models/gpt"), "evaluate", metrics)


if __name__ == "__main__":
    with report_errors():
        main()
