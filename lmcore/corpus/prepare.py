"""Raw files to clean documents: checked against the schema, freed of duplicates, split in two."""

from collections import Counter
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from unicodedata import normalize

from pydantic import Field, model_validator

from lmcore.corpus.documents import (
    REJECTION_COLUMNS,
    Document,
    DocumentWriter,
    Rejection,
    batch,
    excerpt,
    iterate_texts,
    open_parquet,
    to_table,
)
from lmcore.corpus.formats import Layout, read_documents
from lmcore.corpus.leakage import measure_leakage
from lmcore.corpus.quality import GOPHER
from lmcore.corpus.schema import build_schema, find_reasons
from lmcore.corpus.split import split_by_hash, split_by_tail
from lmcore.errors import DataError
from lmcore.files import write_folder
from lmcore.params import Int, Section

LOST = {"damaged", "broken_row"}  # rejections that may stand for many documents
EXAMPLES = 5  # of rejected documents in an error message


class PrepareParams(Section):
    """Section `prepare`. Validation is a fraction of the documents (hash) or of the characters (tail)."""

    text_field: Annotated[str, Field(min_length=1)]
    separator: Annotated[str, Field(min_length=1)] | None
    split: Literal["hash", "tail"]
    validation_fraction: Annotated[float, Field(gt=0, lt=1)]
    min_characters: Annotated[Int, Field(ge=0)]
    max_characters: Int | None
    max_rejected_fraction: Annotated[float, Field(ge=0, le=1)]
    max_leakage: Annotated[float, Field(ge=0, le=1)] | None
    unicode: Literal["as_is", "nfc"]
    newlines: Literal["as_is", "unix"]
    quality: Literal["none", "gopher"]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.max_characters is not None and self.max_characters < max(1, self.min_characters):
            raise ValueError(
                f"prepare.max_characters={self.max_characters}: must be at least 1 and at least "
                f"prepare.min_characters={self.min_characters}, or null for no limit"
            )
        return self


def prepare(params: PrepareParams, raw: Path, folder: Path) -> tuple[dict[str, Any], dict[int, int]]:
    """Make `folder`: {train,validation}/part-*.parquet with the kept documents, rejected.parquet with the others.

    Returns the stage's metrics, and how many of the kept documents have from so many characters to twice as many, by
    that power of two. Memory holds a batch of documents, and of every kept one its id and a 16-byte digest. Raises
    DataError when too much is rejected, nothing is kept, a split is empty, or too much of the validation text occurs in
    the training text; nothing is written then.
    """
    with write_folder(folder) as partial:
        with (
            Cleaner(params, partial / "rejected.parquet") as cleaner,
            DocumentWriter(partial / "train") as train,
            DocumentWriter(partial / "validation") as validation,
        ):
            kept = cleaner.clean(read_documents(raw, Layout(params.text_field, params.separator)))
            if params.split == "hash":
                parts = split_by_hash(kept, params.validation_fraction)
            else:
                parts = split_by_tail(kept, params.validation_fraction, spool=partial / "spool")
            for part in parts:
                train.write(part["train"])
                validation.write(part["validation"])
        cleaner.require_enough()
        _require_both(params, train.documents, validation.documents)
        leakage = measure_leakage(iterate_texts(partial / "validation"), iterate_texts(partial / "train"))
        if params.max_leakage is not None and leakage > params.max_leakage:
            raise DataError(
                f"{leakage:.2%} of validation's sequences of 13 words occur in the training text, more than "
                f"prepare.max_leakage={params.max_leakage:g} allows: remove near copies, or raise that limit"
            )
    metrics = {
        "documents": cleaner.documents,
        "kept": cleaner.kept,
        "rejected": dict(sorted(cleaner.rejected.items())),
        "duplicates": cleaner.duplicates,
        "train_documents": train.documents,
        "validation_documents": validation.documents,
        "train_bytes": train.bytes,
        "validation_bytes": validation.bytes,
        "leakage": leakage,
    }
    return metrics, dict(sorted(cleaner.lengths.items()))


class Cleaner:
    """Lets the good documents pass and keeps account of the rest: documents = kept + rejected + duplicates."""

    def __init__(self, params: PrepareParams, listing: Path) -> None:
        self.documents = self.kept = self.duplicates = 0
        self.rejected: Counter[str] = Counter()
        self.lengths: Counter[int] = Counter()  # of the kept ones, in characters, rounded down to a power of two
        self._params = params
        self._examples: list[str] = []
        self._kept_bytes = self._lost_bytes = 0
        self._seen: dict[bytes, str] = {}  # digest of a text -> id of the first document that has it
        rules = GOPHER if params.quality == "gopher" else {}
        self._schema = build_schema(params.min_characters, params.max_characters, rules)
        self._listing = open_parquet(listing, REJECTION_COLUMNS)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listing.close()

    def clean(self, items: Iterable[Document | Rejection]) -> Iterator[list[Document]]:
        """The documents to keep, in order, a batch at a time. All others go to the listing with their reasons."""
        for some in batch(map(self._normalise, items)):
            reasons = iter(find_reasons([item for item in some if isinstance(item, Document)], self._schema))
            outcomes = [self._judge(item, next(reasons)) if isinstance(item, Document) else item for item in some]
            kept = [outcome for outcome in outcomes if isinstance(outcome, Document)]
            self._record([outcome for outcome in outcomes if isinstance(outcome, Rejection)])
            self.documents += len(some)
            self.kept += len(kept)
            self._kept_bytes += sum(document.bytes for document in kept)
            self.lengths.update(1 << len(document.text).bit_length() - 1 for document in kept)
            yield kept

    def _normalise(self, item: Document | Rejection) -> Document | Rejection:
        """The document as the parameters want its text; as published unless they say otherwise."""
        if isinstance(item, Rejection):
            return item
        text = item.text
        if self._params.newlines == "unix":
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        if self._params.unicode == "nfc":
            text = normalize("NFC", text)
        return item if text == item.text else Document.of(item.file, text, item.row)

    def _judge(self, document: Document, reason: str | None) -> Document | Rejection:
        if reason is not None:
            return Rejection(document.file, document.row, reason, document.bytes, excerpt(document.text))
        first = self._seen.setdefault(blake2b(document.text.encode(), digest_size=16).digest(), document.id)
        if first != document.id:
            return Rejection(document.file, document.row, "duplicate", document.bytes, first)
        return document

    def _record(self, rejections: list[Rejection]) -> None:
        if not rejections:
            return
        self._listing.write_table(to_table(rejections, REJECTION_COLUMNS))
        reasons = Counter(rejection.reason for rejection in rejections)
        self.duplicates += reasons.pop("duplicate", 0)
        self.rejected += reasons
        self._lost_bytes += sum(rejection.bytes for rejection in rejections if rejection.reason in LOST)
        examples = [f"{rejection.id}: {rejection.reason}" for rejection in rejections if rejection.reason in reasons]
        self._examples += examples[: EXAMPLES - len(self._examples)]

    def require_enough(self) -> None:
        """Raise DataError, naming reasons and examples, when nothing or too little of the text was kept."""
        if self.documents == 0:
            raise DataError("the corpus is empty: no file of data/raw holds a document")
        rejected, limit = self.rejected.total(), self._params.max_rejected_fraction
        counts = ", ".join(f"{reason} {count:,}" for reason, count in self.rejected.most_common())
        account = f"{rejected:,} of {self.documents:,} documents rejected ({counts}), e.g. {', '.join(self._examples)}"
        if self.kept == 0:
            raise DataError(f"the corpus is empty: {account}; mend these files or give others (download.path)")
        # What a damaged file would have held is not known by number.
        if rejected > limit * self.documents or self._lost_bytes > limit * (self._kept_bytes + self._lost_bytes):
            remedy = "mend or remove these files, or raise that limit"
            raise DataError(f"{account}; more than prepare.max_rejected_fraction={limit:g} allows: {remedy}")


def _require_both(params: PrepareParams, train_documents: int, validation_documents: int) -> None:
    empty = {"training": train_documents, "validation": validation_documents}
    for name, documents in empty.items():
        if documents == 0:
            raise DataError(
                f"no text is left for {name} with prepare.split={params.split} and prepare.validation_fraction="
                f"{params.validation_fraction:g}: choose another fraction"
                + (", or prepare.split=tail, which cuts inside a document" if params.split == "hash" else "")
            )
