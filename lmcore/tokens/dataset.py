"""Both splits of the encoded corpus with the tokenizer that encoded them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmcore.tokenizer.base import Tokenizer
from lmcore.tokens.checksums import VerifiedFiles
from lmcore.tokens.shards import TokenShards


@dataclass(frozen=True)
class TokenDataset:
    """What a model is trained on; `open_dataset` has checked that the parts belong together."""

    train: TokenShards
    validation: TokenShards
    tokenizer: Tokenizer

    @property
    def fingerprints(self) -> dict[str, Any]:
        """What names this text exactly: a part of the run's identity and of the model's lineage."""
        return {
            "tokens": {"train": self.train.fingerprint, "validation": self.validation.fingerprint},
            "tokenizer": self.tokenizer.fingerprint,
            **({"tokenized": self.train.tokenized} if self.train.tokenized else {}),
        }

    def verify(self, verified: VerifiedFiles) -> None:
        """Raise ArtifactError for a file that is not what its manifest promises: see `TokenShards.verify`."""
        for shards in (self.train, self.validation):
            shards.verify(verified)


def open_dataset(folder: Path, tokenizer: Tokenizer) -> TokenDataset:
    """Raises ArtifactError where a file is missing or of another size, or the tokens are another tokenizer's."""
    train, validation = (TokenShards.open(folder, split) for split in ("train", "validation"))
    for shards in (train, validation):
        shards.require_tokenizer(tokenizer)
    return TokenDataset(train, validation, tokenizer)
