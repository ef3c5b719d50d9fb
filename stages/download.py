"""download: fetch the corpus as published, check it, and list what came."""

from pathlib import Path

from lmcore.download.download import download
from lmcore.download.params import DownloadParams
from lmcore.errors import report_errors
from lmcore.files import write_json
from lmcore.params import read_section


def main() -> None:
    """Make data/raw and the stage's metrics."""
    params = read_section(DownloadParams, "download")
    metrics = download(params, Path("data/raw"))
    write_json(Path("reports/metrics/download.json"), metrics)


if __name__ == "__main__":
    with report_errors():
        main()
