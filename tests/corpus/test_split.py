"""Both splits are partitions; the tail is nanoGPT's."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.corpus.documents import Document
from lmcore.corpus.split import split_by_hash, split_by_tail

texts = st.lists(st.text(alphabet="aé\n", min_size=1, max_size=20), max_size=30)
fractions = st.integers(1, 99).map(lambda percent: percent / 100)


def name_documents(texts: list[str]) -> list[Document]:
    return [Document.of(f"{number}.txt", text) for number, text in enumerate(texts)]


def join(parts: list[dict[str, list[Document]]], name: str) -> list[Document]:
    return [document for part in parts for document in part[name]]


@given(texts, fractions)
def test_the_hash_split_is_a_partition(texts, fraction):
    documents = name_documents(texts)
    parts = list(split_by_hash([documents], fraction))
    assert Counter(join(parts, "train") + join(parts, "validation")) == Counter(documents)


def test_the_hash_split_takes_its_fraction():
    documents = name_documents(20_000 * ["text"])
    share = len(join(list(split_by_hash([documents], 0.05)), "validation")) / len(documents)
    assert share == pytest.approx(0.05, abs=0.005)


def test_a_document_stays_where_it_is():
    documents = name_documents(1000 * ["text"])
    few = random.Random(1).sample(documents, 300)
    chosen = join(list(split_by_hash([documents], 0.1)), "validation")
    assert set(join(list(split_by_hash([few[:100], few[100:]], 0.1)), "validation")) == set(chosen) & set(few)
    assert set(chosen) <= set(join(list(split_by_hash([documents], 0.2)), "validation"))


@settings(deadline=None)
@given(texts, fractions, st.integers(1, 5))
def test_the_tail_split_cuts_the_whole_text_once(tmp_path_factory, texts, fraction, size):
    spool = tmp_path_factory.mktemp("tail") / "spool"
    documents = name_documents(texts)
    batches = [documents[at : at + size] for at in range(0, len(documents), size)]
    parts = list(split_by_tail(batches, fraction, spool))
    train, validation = ("".join(document.text for document in join(parts, name)) for name in ("train", "validation"))
    whole = "".join(texts)
    assert train + validation == whole
    assert len(train) == len(whole) * (100 - round(100 * fraction)) // 100
    assert all(
        document.bytes == len(document.text.encode()) for part in parts for some in part.values() for document in some
    )
    assert not spool.exists() or not texts


def test_the_tail_of_tinyshakespeare(tmp_path):
    """As nanoGPT's data/shakespeare_char/readme.md: train has 1,003,854 tokens, val 111,540."""
    parts = list(split_by_tail([[Document.of("input.txt", 1_115_394 * "x")]], 0.1, tmp_path / "spool"))
    assert [(document.id, document.bytes) for document in join(parts, "train") + join(parts, "validation")] == [
        ("input.txt#train", 1_003_854),
        ("input.txt#validation", 111_540),
    ]
