"""export: write the model as a Hugging Face folder that computes the same."""

from pathlib import Path

from lmcore.errors import report_errors
from lmcore.export.hugging_face import export_model
from lmcore.export.params import ExportParams
from lmcore.files import read_json, write_json
from lmcore.params import read_section


def main() -> None:
    params = read_section(ExportParams, "export")
    figures = {
        stage: read_json(Path(f"reports/metrics/{stage}.json"), f"run dvc repro {stage}")
        for stage in ("train", "evaluate")
    }
    corpus = read_json(Path("data/raw/manifest.json"), "run dvc repro download")
    curve = Path("reports/plots/training.svg")
    metrics = export_model(
        params, Path("models/gpt"), Path("models/export"), corpus=corpus, figures=figures, curve=curve
    )
    write_json(Path("reports/metrics/export.json"), metrics)


if __name__ == "__main__":
    with report_errors():
        main()
