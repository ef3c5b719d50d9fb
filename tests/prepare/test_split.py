"""Both splits are partitions; the tail is nanoGPT's."""

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcore.prepare.documents import Document
from lmcore.prepare.split import HashSplit, TailSplit

texts = st.lists(st.text(alphabet="aé\n", min_size=1, max_size=20), max_size=30)
fractions = st.integers(1, 99).map(lambda percent: percent / 100)


def name_documents(texts: list[str]) -> list[Document]:
    return [Document.of(f"{number}.txt", text) for number, text in enumerate(texts)]


@given(texts, fractions)
def test_the_hash_split_is_a_partition(texts, fraction):
    documents = name_documents(texts)
    train, validation = HashSplit(fraction).split(documents)
    assert Counter(train + validation) == Counter(documents)


def test_the_hash_split_takes_its_fraction():
    documents = name_documents(20_000 * ["text"])
    assert len(HashSplit(0.05).split(documents)[1]) / len(documents) == pytest.approx(0.05, abs=0.005)


def test_a_document_stays_where_it_is():
    documents = name_documents(1000 * ["text"])
    few = random.Random(1).sample(documents, 300)
    chosen = HashSplit(0.1).split(documents)[1]
    assert {document for some in (few[:100], few[100:]) for document in HashSplit(0.1).split(some)[1]} == (
        set(chosen) & set(few)
    )
    assert set(chosen) <= set(HashSplit(0.2).split(documents)[1])


@settings(deadline=None)
@given(texts, fractions, st.integers(1, 5))
def test_the_tail_split_cuts_the_whole_text_once(texts, fraction, size):
    documents = name_documents(texts)
    whole = "".join(texts)
    split = TailSplit(TailSplit.find_cut(len(whole), fraction), begin=0)
    parts = [split.split(documents[at : at + size]) for at in range(0, len(documents), size)]
    train, validation = ([document for part in parts for document in part[place]] for place in (0, 1))
    assert "".join(document.text for document in train + validation) == whole
    assert sum(len(document.text) for document in train) == len(whole) * (100 - round(100 * fraction)) // 100
    assert all(document.bytes == len(document.text.encode()) for document in train + validation)


def test_the_tail_of_tinyshakespeare():
    """As nanoGPT's data/shakespeare_char/readme.md: train has 1,003,854 tokens, val 111,540."""
    split = TailSplit(TailSplit.find_cut(1_115_394, 0.1), begin=0)
    train, validation = split.split([Document.of("input.txt", 1_115_394 * "x")])
    assert [(document.id, document.bytes) for document in train + validation] == [
        ("input.txt#train", 1_003_854),
        ("input.txt#validation", 111_540),
    ]
