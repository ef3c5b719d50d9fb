"""encode: turn the documents of both splits into token shards."""

from pathlib import Path

from lmcore.corpus.documents import list_parts
from lmcore.engine import open_engine
from lmcore.errors import report_errors
from lmcore.files import project_root, write_json
from lmcore.params import read_section
from lmcore.tokenizer.load import load_tokenizer
from lmcore.tokens.encode import EncodeParams, encode_splits


def main() -> None:
    """Encode train and validation with the trained tokenizer; write the shards and their metrics."""
    params = read_section(EncodeParams, "encode")
    tokenizer = load_tokenizer(Path("models/tokenizer"))
    splits = {split: list_parts(Path("data/documents") / split) for split in ("train", "validation")}
    scratch = project_root() / ".cache" / "encode"
    with open_engine() as engine:
        metrics = encode_splits(params, splits, tokenizer, Path("data/tokens"), scratch=scratch, engine=engine)
    write_json(Path("reports/metrics/encode.json"), metrics)


if __name__ == "__main__":
    with report_errors():
        main()
