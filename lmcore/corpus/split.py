"""Which text is for training and which for validation: by a hash of the name, or the tail of the whole."""

import shutil
from collections.abc import Iterable, Iterator
from fractions import Fraction
from hashlib import blake2b
from pathlib import Path

from lmcore.corpus.documents import Document, DocumentWriter, iterate_documents

Split = dict[str, list[Document]]


def split_by_hash(batches: Iterable[list[Document]], fraction: float) -> Iterator[Split]:
    """Each document to train or validation by a hash of its id: it stays where it is whatever joins or leaves."""
    for documents in batches:
        parts: Split = {"train": [], "validation": []}
        for document in documents:
            place = int.from_bytes(blake2b(document.id.encode(), digest_size=8).digest(), "big")
            parts["validation" if place < fraction * 2**64 else "train"].append(document)
        yield parts


def split_by_tail(batches: Iterable[list[Document]], fraction: float, spool: Path) -> Iterator[Split]:
    """The last `fraction` of the characters to validation, all before to train: nanoGPT's split.

    The document across the cut becomes two, ID#train and ID#validation. Where to cut is known at the end only, so
    the documents wait in the folder `spool`, which is gone afterwards.

    tail of 0.1 of tinyshakespeare's 1,115,394 characters: 1,003,854 to train, 111,540 to validation
    """
    with DocumentWriter(spool) as writer:
        for documents in batches:
            writer.write(documents)
    if not writer.documents:
        return
    cut = int(writer.characters * (1 - Fraction(str(fraction))))  # exact: 100 * (1 - 0.07) is 92.99... in floats
    begin = 0
    for documents in iterate_documents(spool):
        parts: Split = {"train": [], "validation": []}
        for document in documents:
            inside = cut - begin  # where the cut falls, in characters of this document
            begin += len(document.text)
            if inside >= len(document.text):
                parts["train"].append(document)
            elif inside <= 0:
                parts["validation"].append(document)
            else:
                parts["train"].append(Document.of(f"{document.id}#train", document.text[:inside]))
                parts["validation"].append(Document.of(f"{document.id}#validation", document.text[inside:]))
        yield parts
    shutil.rmtree(spool)
