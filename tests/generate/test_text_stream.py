"""Text as it comes: the pieces make up the whole, and no stop string is ever shown."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import tokenizer_params

from lmcore.generate.text_stream import TextStream
from lmcore.train_tokenizer.train_tokenizer import train_tokenizer

BYTES = train_tokenizer(tokenizer_params("byte"), [])


def stream(data: bytes, stop: list[str]) -> tuple[str, bool]:
    """What was shown of `data`, byte by byte, until it stopped."""
    reader, shown = TextStream(BYTES, stop), ""
    for byte in data:
        shown += reader.feed(byte)
        assert not shown.endswith("\ufffd") or b"\xef\xbf\xbd" in data or not _is_text(data)
        if reader.stopped:
            return shown, True
    return shown + reader.close(), reader.stopped


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


@given(st.binary(max_size=40))
def test_pieces_make_up_the_decoded_text(data: bytes) -> None:
    assert stream(data, []) == (data.decode(errors="replace"), False)


@given(st.text("aäb🙂", max_size=30), st.lists(st.text("aäb🙂", min_size=1, max_size=4), max_size=3))
@settings(deadline=None)
def test_a_text_ends_before_its_first_stop_string(text: str, stop: list[str]) -> None:
    """The first that is whole, as characters come one by one; among those that end together the longest."""
    whole = [place for place in range(len(text) + 1) if any(text[:place].endswith(one) for one in stop)]
    if whole:
        said = text[: whole[0]]
        expected = said[: min(said.index(one) for one in stop if one in said)]
        assert stream(text.encode(), stop) == (expected, True)
    else:
        assert stream(text.encode(), stop) == (text, False)


@pytest.mark.parametrize(("text", "shown"), [("ab", ["a", "b"]), ("aäb", ["a", "", "ä", "b"])])
def test_a_character_is_shown_as_soon_as_it_is_whole(text: str, shown: list[str]) -> None:
    reader = TextStream(BYTES, ["xyz"])
    assert [reader.feed(byte) for byte in text.encode()] == shown


def test_what_may_become_a_stop_string_waits() -> None:
    reader = TextStream(BYTES, ["\n\ndef", "END"])
    assert [reader.feed(byte) for byte in b"x\n\ny"] == ["x", "", "", "\n\ny"]
    assert [reader.feed(byte) for byte in b"EN"] == ["", ""]
    assert reader.close() == "EN"
