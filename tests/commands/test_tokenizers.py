"""Two tokenizers side by side: figures that another count gives, texts of every kind, mistakes in one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tiktoken
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from lmcore.commands.tokenizers import compare_tokenizers, shorten
from lmcore.errors import ArtifactError, DataError
from lmcore.prepare.documents import Document, DocumentWriter
from lmcore.tokenizer.bpe import BpeTokenizer
from lmcore.tokenizer.byte import ByteTokenizer

TEXTS = {"a.txt": "the cat sat on the mat, the end\n", "b/c.md": "Émigré: the 12 cats\n"}
SIZE = sum(len(text.encode()) for text in TEXTS.values())

Compare = Callable[..., list[str]]


@pytest.fixture
def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Compare:
    """The command's lines, in a folder with texts, a byte tokenizer and a fitted one."""
    monkeypatch.chdir(tmp_path)
    for name, text in TEXTS.items():
        (tmp_path / "texts" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / name).write_text(text, encoding="utf-8")
    ByteTokenizer.create().save(tmp_path / "bytes")
    BpeTokenizer.train([[*TEXTS.values()]], 270).save(tmp_path / "bpe")
    return lambda first="bytes", second="bpe", text="texts": list(compare_tokenizers((first, second), Path(text)))


def figures(lines: list[str]) -> dict[str, list[str]]:
    """The columns of the rows by their name."""
    rows = [line for line in lines if "  " in line and not line.startswith(" ")]
    return {line.partition("  ")[0]: line.partition("  ")[2].split("  ") for line in map(squeeze, rows)}


def squeeze(line: str) -> str:
    return "  ".join(part.strip() for part in line.split("  ") if part.strip())


def test_figures_of_both(compare: Compare) -> None:
    fitted = BpeTokenizer.train([[*TEXTS.values()]], 270)
    tokens = {name: len(fitted.encode(text)) for name, text in TEXTS.items()}
    lines = compare()
    found = figures(lines)
    assert lines[0] == f"texts: texts: 2, bytes: {SIZE}"
    assert found["vocabulary"] == ["257", "270"]
    assert found["tokens"] == [f"{SIZE}", f"{sum(tokens.values())}"]
    assert found["bytes per token, .txt"] == ["1.0000", f"{len(TEXTS['a.txt']) / tokens['a.txt']:.4f}"]
    assert found["bytes per token, all"] == ["1.0000", f"{SIZE / sum(tokens.values()):.4f}"]
    assert found["texts with fewer tokens"] == ["0.0 %", "100.0 %"]
    assert found["texts that come back"] == ["2 of 2", "2 of 2"]
    assert all(float(speed) > 0 for speed in found["MB/s, one core"])
    assert "bytes has fewer tokens for no word" in lines
    assert any(squeeze(line).startswith("␣the  3 times") for line in lines)


def test_the_same_twice_is_no_difference(compare: Compare) -> None:
    lines = compare("bpe", "bpe")
    assert figures(lines)["texts with fewer tokens"] == ["0.0 %", "0.0 %"]
    assert [line for line in lines if line.endswith("has fewer tokens for no word")] == [
        "bpe has fewer tokens for no word"
    ] * 2


def test_what_is_no_text_is_left_out_and_said(compare: Compare) -> None:
    Path("texts/broken.txt").write_bytes(b"\xff\x00")
    Path("texts/.hidden").write_bytes(b"\xff")
    lines = compare()
    assert lines[:2] == [
        f"texts: texts: 2, bytes: {SIZE}",
        "left out: 1, which are no text, as broken.txt (not_utf8)",
    ]


def test_a_file_a_prepared_split_and_a_hidden_folder(compare: Compare) -> None:
    with DocumentWriter(Path(".hidden/split"), "own") as writer:
        writer.write([Document.of("z.jsonl", text, row) for row, text in enumerate(TEXTS.values())])
    found = figures(compare(text=".hidden/split"))
    assert found["bytes per token, .jsonl"][0] == "1.0000"
    assert figures(compare(text="texts/a.txt"))["tokens"][0] == f"{len(TEXTS['a.txt'])}"
    Path("texts").rename(".hidden/texts")
    assert figures(compare(text=".hidden/texts"))["tokens"][0] == f"{SIZE}"


def test_a_name_of_tiktoken_s(compare: Compare, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = {bytes([byte]): byte for byte in range(256)} | {b"the": 256}
    encoding = tiktoken.Encoding(
        "gpt2", pat_str=r"\w+|\W", mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 257}
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda _: encoding)
    assert figures(compare(second="gpt2"))["tokens"] == [f"{SIZE}", f"{SIZE - 2 * 4}"]


def test_a_tokenizer_that_lmcore_could_not_train_with(compare: Compare) -> None:
    """Word pieces of lower-case text, as BERT's: it is compared all the same, and what it loses is said."""
    original = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    original.normalizer = normalizers.Lowercase()
    original.pre_tokenizer = pre_tokenizers.Whitespace()
    original.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=60, special_tokens=["[UNK]"], show_progress=False)
    original.train_from_iterator(TEXTS.values(), trainer)
    Path("foreign").mkdir()
    original.save("foreign/tokenizer.json")
    lines = compare(second="foreign")
    found = figures(lines)
    expected = sum(len(original.encode(text, add_special_tokens=False).ids) for text in TEXTS.values())
    assert found["tokens"] == [f"{SIZE}", f"{expected}"]
    assert found["vocabulary"] == ["257", f"{original.get_vocab_size()}"]
    assert found["texts that come back"] == ["2 of 2", "0 of 2"]
    assert "foreign changes a.txt" in lines


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        (("nowhere", "bpe"), ArtifactError, r"^nowhere: is neither a folder with a tokenizer.json nor a name .*gpt2"),
        (("bpe", "texts"), ArtifactError, r"^texts/tokenizer\.json does not exist"),
        (("bpe", "damaged"), ArtifactError, r"^damaged/tokenizer\.json is not byte-level BPE"),
        (("bpe", "bytes", "none.txt"), DataError, r"^none\.txt does not exist: run .* or name a file"),
        (("bpe", "bytes", "empty"), DataError, r"^empty holds no text"),
    ],
)
def test_a_mistake_is_one_line(
    compare: Compare, arguments: tuple[str, ...], kind: type[Exception], message: str
) -> None:
    Path("empty").mkdir()
    Path("damaged").mkdir()
    Path("damaged/tokenizer.json").write_text(json.dumps({"model": {"type": "BPE"}}))
    with pytest.raises(kind, match=message) as caught:
        compare(*arguments)
    assert "\n" not in str(caught.value)


def test_a_long_path_is_shown_by_its_end() -> None:
    assert shorten("models/tokenizer") == "models/tokenizer"
    assert shorten("a" * 40 + "/tokenizer") == "…" + "a" * 21 + "/tokenizer"
