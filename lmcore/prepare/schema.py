"""What a text must be to enter the corpus: a pandera schema whose checks are named after the reasons of refusal."""

from collections.abc import Sequence

import pandas as pd
import pandera.pandas as pandera

from lmcore.prepare.documents import Document
from lmcore.prepare.quality import NO_FILTER, QualityFilter

Schema = pandera.DataFrameSchema


def build_schema(min_characters: int, max_characters: int | None, quality: QualityFilter = NO_FILTER) -> Schema:
    """The rules for the facts of one batch of documents. The first broken one is the reason of refusal.

    nul_byte    holds U+0000: a binary file that happens to be valid UTF-8
    empty       nothing but white space
    too_short   fewer than `min_characters` characters
    too_long    more than `max_characters` characters, where there is a limit
    quality_X   the fact X that `quality` measures is outside its limits
    """
    check = pandera.Check
    lengths = [check.ge(min_characters, error="too_short")]
    if max_characters is not None:
        lengths.append(check.le(max_characters, error="too_long"))
    columns = {
        "holds_nul": pandera.Column(bool, check.eq(False, error="nul_byte")),
        "is_blank": pandera.Column(bool, check.eq(False, error="empty")),
        "characters": pandera.Column("int64", lengths),
        **{
            name: pandera.Column("float64", check.in_range(least, greatest, error=f"quality_{name}"))
            for name, (least, greatest) in quality.limits.items()
        },
    }
    return pandera.DataFrameSchema(columns, strict=True, ordered=True)


def find_reasons(documents: Sequence[Document], schema: Schema, quality: QualityFilter = NO_FILTER) -> list[str | None]:
    """Return for each document the name of the first rule that its text breaks, None for a good one."""
    reasons: list[str | None] = [None] * len(documents)
    if not documents:
        return reasons
    measured = [quality.measure(document.text) for document in documents]
    # Not the text itself, for pandera copies and formats every value that breaks a rule.
    facts = {
        "holds_nul": ["\0" in document.text for document in documents],
        "is_blank": [not document.text or document.text.isspace() for document in documents],
        "characters": [len(document.text) for document in documents],
        **{name: [float(values[name]) for values in measured] for name in quality.limits},
    }
    try:
        schema.validate(pd.DataFrame(facts), lazy=True)
    except pandera.errors.SchemaErrors as error:
        failures = error.failure_cases[::-1]  # in the schema's order; the first rule has the last word
        for row, reason in zip(failures["index"], failures["check"], strict=True):
            reasons[row] = reason
    return reasons
