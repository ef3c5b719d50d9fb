"""Which text is for training and which for validation: by a hash of the name, or the tail of the whole."""

from dataclasses import dataclass
from fractions import Fraction
from hashlib import blake2b

from lmcore.prepare.documents import Document

Parts = tuple[list[Document], list[Document]]  # for training and for validation


@dataclass(frozen=True)
class HashSplit:
    """Each document by a hash of its id: it stays where it is whatever joins or leaves."""

    fraction: float

    def split(self, documents: list[Document]) -> Parts:
        """The documents in order, `fraction` of them for validation."""
        train: list[Document] = []
        validation: list[Document] = []
        for document in documents:
            place = int.from_bytes(blake2b(document.id.encode(), digest_size=8).digest(), "big")
            (validation if place < self.fraction * 2**64 else train).append(document)
        return train, validation


@dataclass
class TailSplit:
    """The first `cut` characters of the whole text for training, the others for validation: nanoGPT's split.

    The document across the cut becomes two, ID#train and ID#validation.
    """

    cut: int
    begin: int  # characters of the whole text before the next documents

    @staticmethod
    def find_cut(characters: int, fraction: float) -> int:
        """Where to cut so many characters: 1,003,854 for a tenth of tinyshakespeare's 1,115,394 as validation."""
        return int(characters * (1 - Fraction(str(fraction))))  # exact: 100 * (1 - 0.07) is 92.99... in floats

    def split(self, documents: list[Document]) -> Parts:
        """The documents in order, those after the last call's."""
        train: list[Document] = []
        validation: list[Document] = []
        for document in documents:
            inside = self.cut - self.begin  # where the cut falls, in characters of this document
            self.begin += len(document.text)
            if inside >= len(document.text):
                train.append(document)
            elif inside <= 0:
                validation.append(document)
            else:
                train.append(Document.of(f"{document.id}#train", document.text[:inside]))
                validation.append(Document.of(f"{document.id}#validation", document.text[inside:]))
        return train, validation
