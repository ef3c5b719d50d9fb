"""Quality filters by name: what `prepare.quality` permits."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from lmcore.prepare.gopher import GOPHER, measure_gopher


@dataclass(frozen=True)
class QualityFilter:
    """Facts of a text that `measure` returns, and the least and greatest value of each in `limits`.

    A text with a fact X outside its limits is rejected as `quality_X`, X being the first one in the order of `limits`.
    """

    measure: Callable[[str], Mapping[str, float]]
    limits: Mapping[str, tuple[float, float]]


NO_FILTER = QualityFilter(lambda _: {}, {})
FILTERS = {"none": NO_FILTER, "gopher": QualityFilter(measure_gopher, GOPHER)}
