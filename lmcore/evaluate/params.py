"""The parameters of the evaluate stage."""

from typing import Self

from pydantic import Field, model_validator

from lmcore.evaluate.benchmarks import check_suites
from lmcore.params import Int, Section


class EvaluateParams(Section):
    """The part of the validation split that is measured, and the benchmarks beside it."""

    max_tokens: Int | None = Field(default=None, ge=1)
    suites: list[str] | None = None
    max_items: Int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        check_suites(self.suites or [])
        return self

    def windows(self, context_length: int) -> int | None:
        """`max_tokens` as whole windows, at least one; None is the whole split."""
        return None if self.max_tokens is None else max(1, self.max_tokens // context_length)
