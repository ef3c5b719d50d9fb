"""train_tokenizer: learn the vocabulary from the train documents."""

from collections.abc import Iterator
from pathlib import Path

from lmcore.errors import report_errors
from lmcore.files import write_json, write_text
from lmcore.params import read_section
from lmcore.prepare.documents import NamedText, iterate_named_texts, list_parts
from lmcore.train_tokenizer.counts import count_tokens
from lmcore.train_tokenizer.params import TokenizerParams
from lmcore.train_tokenizer.report import render_page
from lmcore.train_tokenizer.subsample import sample_texts
from lmcore.train_tokenizer.train_tokenizer import train_tokenizer


def main() -> None:
    """Train and measure on the same text; write the tokenizer, its metrics and a page about it."""
    params = read_section(TokenizerParams, "train_tokenizer")
    documents = Path("data/documents/train")
    size = sum(part.size for part in list_parts(documents))

    def sample() -> Iterator[list[NamedText]]:
        return sample_texts(iterate_named_texts(documents), size, params.max_bytes)

    tokenizer = train_tokenizer(params, ([text for _, text in batch] for batch in sample()))
    counts = count_tokens(tokenizer, sample())
    tokenizer.save(Path("models/tokenizer"))
    write_json(Path("reports/metrics/train_tokenizer.json"), counts.metrics)
    write_text(Path("reports/tokenizer.md"), render_page(tokenizer, counts))


if __name__ == "__main__":
    with report_errors():
        main()
