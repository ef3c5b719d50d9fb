"""encode: turn the documents of both splits into token shards."""

from pathlib import Path

from lmcore.encode.encode import encode_splits
from lmcore.encode.params import EncodeParams
from lmcore.encode.pretokenized import take_tokens
from lmcore.errors import report_errors
from lmcore.files import project_root, write_json
from lmcore.params import read_section
from lmcore.prepare.documents import list_parts
from lmcore.runtime.executor import open_executor
from lmcore.tokenizer.load import load_tokenizer
from lmcore.tokens.checksums import VERIFIED, VerifiedFiles


def main() -> None:
    """Encode train and validation with the trained tokenizer, or take those of others; write shards and metrics."""
    params = read_section(EncodeParams, "encode")
    tokenizer = load_tokenizer(Path("models/tokenizer"))
    folder, verified = Path("data/tokens"), VerifiedFiles(project_root() / VERIFIED)
    if params.tokenized is not None:
        metrics = take_tokens(params.tokenized, params.shard_tokens, tokenizer, folder, verified)
    else:
        splits = {split: list_parts(Path("data/documents") / split) for split in ("train", "validation")}
        scratch = project_root() / ".cache" / "encode"
        with open_executor() as executor:
            metrics = encode_splits(
                params, splits, tokenizer, folder, scratch=scratch, executor=executor, verified=verified
            )
    write_json(Path("reports/metrics/encode.json"), metrics)


if __name__ == "__main__":
    with report_errors():
        main()
