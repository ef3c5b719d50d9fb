"""evaluate: measure the model on the validation text, next to compressors and n-grams, and by benchmarks."""

from pathlib import Path

from lmcore.errors import report_errors
from lmcore.evaluate.baselines import measure_baselines
from lmcore.evaluate.benchmarks import open_benchmarks
from lmcore.evaluate.breakdown import measure_text
from lmcore.evaluate.multiple_choice import measure_benchmarks
from lmcore.evaluate.params import EvaluateParams
from lmcore.files import project_root, write_json, write_text
from lmcore.hardware.params import HardwareParams
from lmcore.hardware.resolve import claim_device
from lmcore.model.save_load import load_model
from lmcore.params import read_params, read_section
from lmcore.tokenizer.load import load_tokenizer
from lmcore.tokens.checksums import VERIFIED, VerifiedFiles
from lmcore.tokens.dataset import open_dataset
from lmcore.tracking.session import log_results


def main() -> None:
    params = read_section(EvaluateParams, "evaluate")
    benchmarks = open_benchmarks(params.suites or [])
    device = claim_device(read_section(HardwareParams, "hardware"), read_params())
    model, tokenizer = load_model(Path("models/gpt"), device), load_tokenizer(Path("models/gpt"))
    dataset = open_dataset(Path("data/tokens"), tokenizer)
    dataset.verify(VerifiedFiles(project_root() / VERIFIED))
    windows = params.windows(model.params.context_length)
    metrics, positions = measure_text(model, dataset.validation, tokenizer.byte_lengths, windows)
    metrics |= {"baselines": measure_baselines(dataset, model.params.context_length, windows)}
    metrics |= measure_benchmarks(model, tokenizer, benchmarks, params.max_items)
    write_text(Path("reports/plots/loss_by_position.csv"), positions)
    write_json(Path("reports/metrics/evaluate.json"), metrics)
    log_results(Path("models/gpt"), "evaluate", metrics)


if __name__ == "__main__":
    with report_errors():
        main()
