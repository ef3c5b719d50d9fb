"""train_tokenizer: learn the vocabulary from the train documents."""

from pathlib import Path

from lmcore.corpus.documents import iterate_texts, list_parts
from lmcore.corpus.sample import sample_texts
from lmcore.errors import report_errors
from lmcore.files import write_json
from lmcore.params import read_section
from lmcore.tokenizer.load import TokenizerParams, measure_tokenizer, train_tokenizer


def main() -> None:
    """Train and measure on the same text; write the tokenizer and its metrics."""
    params = read_section(TokenizerParams, "train_tokenizer")
    documents = Path("data/documents/train")
    size = sum(part.size for part in list_parts(documents))
    tokenizer = train_tokenizer(params, sample_texts(iterate_texts(documents), size, params.max_bytes))
    metrics = measure_tokenizer(tokenizer, sample_texts(iterate_texts(documents), size, params.max_bytes))
    tokenizer.save(Path("models/tokenizer"))
    write_json(Path("reports/metrics/train_tokenizer.json"), metrics)


if __name__ == "__main__":
    with report_errors():
        main()
