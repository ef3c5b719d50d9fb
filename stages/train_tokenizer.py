"""train_tokenizer: learn the vocabulary from the train documents."""

from pathlib import Path

from lmcore.corpus.documents import iterate_texts
from lmcore.errors import report_errors
from lmcore.files import write_json
from lmcore.params import read_section
from lmcore.tokenizer.load import TokenizerParams, measure_tokenizer, train_tokenizer


def main() -> None:
    """Train and measure on the same documents; write the tokenizer and its metrics."""
    params = read_section(TokenizerParams, "train_tokenizer")
    documents = Path("data/documents/train")
    tokenizer = train_tokenizer(params, iterate_texts(documents))
    metrics = measure_tokenizer(tokenizer, iterate_texts(documents))
    tokenizer.save(Path("models/tokenizer"))
    write_json(Path("reports/metrics/train_tokenizer.json"), metrics)


if __name__ == "__main__":
    with report_errors():
        main()
