"""prepare: check every document, drop duplicates, and split the rest into training and validation."""

from pathlib import Path

from lmcore.errors import report_errors
from lmcore.files import project_root, write_json
from lmcore.params import read_section
from lmcore.plots import draw_corpus
from lmcore.prepare.params import PrepareParams
from lmcore.prepare.prepare import prepare
from lmcore.runtime.executor import open_executor


def main() -> None:
    """Make data/documents, the stage's metrics and a picture of them."""
    params = read_section(PrepareParams, "prepare")
    with open_executor() as executor:
        scratch = project_root() / ".cache" / "prepare"
        metrics, lengths = prepare(params, Path("data/raw"), Path("data/documents"), scratch=scratch, executor=executor)
    outcomes = {"kept": metrics["kept"], "duplicate": metrics["duplicates"], **metrics["rejected"]}
    draw_corpus(lengths, outcomes, Path("reports/plots/corpus.svg"))
    write_json(Path("reports/metrics/prepare.json"), metrics)


if __name__ == "__main__":
    with report_errors():
        main()
