"""prepare: check every document, drop duplicates, and split the rest into training and validation."""

from pathlib import Path

from lmcore.corpus.prepare import PrepareParams, prepare
from lmcore.errors import report_errors
from lmcore.files import write_json
from lmcore.params import read_section


def main() -> None:
    """Make data/documents and the stage's metrics."""
    params = read_section(PrepareParams, "prepare")
    metrics = prepare(params, Path("data/raw"), Path("data/documents"))
    write_json(Path("reports/metrics/prepare.json"), metrics)


if __name__ == "__main__":
    with report_errors():
        main()
