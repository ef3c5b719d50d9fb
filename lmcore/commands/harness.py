"""lmcore's models in EleutherAI's lm-evaluation-harness (extra `eval`)."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import Any

import torch

from lmcore.errors import DataError, LmcoreError, ParameterError
from lmcore.evaluate.loglikelihood import Pair, score_pairs
from lmcore.files import derive_seed
from lmcore.generate.decoder import Request
from lmcore.generate.open_decoder import open_decoder
from lmcore.generate.params import SampleParams
from lmcore.generate.sampling import Sampling
from lmcore.generate.text_stream import collect, complete
from lmcore.model.save_load import load_model
from lmcore.model.vocabulary import require_vocabulary
from lmcore.params import parse_section
from lmcore.tokenizer.load import load_tokenizer

try:
    import lm_eval
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window, make_table
except ImportError as error:
    raise LmcoreError(f"lm-evaluation-harness is not installed ({error}): pip install -e '.[eval]'") from None

BOOTSTRAP_DRAWS = 1_000  # for standard errors of what is no mean, as a perplexity; its own 100,000 take minutes
# The sampling parameters, beside `until`, `max_gen_toks` and `do_sample`, with their values where a task states none.
SAMPLING = asdict(Sampling())

Encoded = tuple[Any, list[int], list[int]]  # the texts, and the tokens of context and continuation


class HarnessModel(TemplateLM):  # type: ignore[misc]  # lm_eval has no types
    """A model folder, ours or Hugging Face's, as lm-evaluation-harness asks for it: `simple_evaluate(model=...)`.

    `batch_size` pairs are scored, or texts written, at once. Raises ArtifactError for a folder that is none.
    """

    def __init__(self, folder: Path, *, device: torch.device | str = "cpu", batch_size: int = 32) -> None:
        super().__init__()
        self.model, self.text_tokenizer = load_model(folder, device), load_tokenizer(folder)
        self.batch_size = batch_size
        require_vocabulary(self.model, self.text_tokenizer)

    @property
    def eot_token_id(self) -> int:
        """What an empty context is, and what texts are scored after."""
        return self.text_tokenizer.end_of_text

    @property
    def max_length(self) -> int:
        """The model's context."""
        return self.model.params.context_length

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:  # noqa: ARG002
        """Its tokens; none of them is special, whatever is asked."""
        return self.text_tokenizer.encode(string)

    def _loglikelihood_tokens(self, requests: Sequence[Encoded], **_: Any) -> list[tuple[float, bool]]:
        """The scores of the pairs, those of one context together."""
        for _texts, _context, continuation in requests:
            if not 0 < len(continuation) <= self.max_length:
                raise DataError(
                    f"a continuation has {len(continuation)} tokens, and 1 to {self.max_length} can be scored, the "
                    f"model's context: leave the task out"
                )
        groups = [[Pair(*request[1:]) for request in group] for _, group in groupby(requests, key=lambda one: one[1])]
        scored = score_pairs(self.model, groups, self.batch_size)
        answers = [(score.loglikelihood, score.greedy) for group in scored for score in group]
        for request, answer in zip(requests, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", request[0], answer)
        return answers

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
        """The log-probability of each whole text after end-of-text, in windows of the context side by side."""
        sums = []
        for request in requests:
            (text,) = request.args
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            groups = [[Pair(*make_disjoint_window(window))] for window in windows]
            scores = score_pairs(self.model, groups, self.batch_size)
            sums.append(sum(score.loglikelihood for (score,) in scores))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), sums[-1])
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
        """What each context goes on with, up to the first of its stop strings, side by side.

        A context keeps its end, as much as leaves room for `max_gen_toks`, or half of the model's context. Raises
        ParameterError for a setting that our decoding has not.
        """
        wanted = [self._build_request(*request.args) for request in requests]
        longest = max((len(one.prompt) + one.max_new_tokens for one in wanted), default=1)
        decoder = open_decoder(self.model, self.text_tokenizer, batch=self.batch_size, longest=longest)
        texts = [one.text for one in collect(complete(decoder, self.text_tokenizer, wanted), len(wanted))]
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _build_request(self, context: str, asked: dict[str, Any]) -> Request:
        arguments = dict(normalize_gen_kwargs(asked))
        until, most, draws = (arguments.pop(key, None) for key in ("until", "max_gen_toks", "do_sample"))
        if unknown := arguments.keys() - SAMPLING:
            raise ParameterError(
                f"the task asks for {', '.join(sorted(unknown))}, which decoding has not: leave it out; there are "
                f"{', '.join(sorted(SAMPLING))}"
            )
        if not draws:
            arguments["temperature"] = 0.0
        arguments["top_k"] = arguments.get("top_k") or None  # 0 is Hugging Face's word for off
        values = {**SampleParams().model_dump(), **SAMPLING, **arguments}
        sampling = parse_section(SampleParams, "the task's generation_kwargs", values).sampling
        if type(most) is not int or most < 1:
            raise ParameterError(f"the task's max_gen_toks={most!r}: must be a whole number of 1 or more")
        room = self.max_length - most if most < self.max_length else self.max_length // 2
        prompt = (self.tok_encode(context) or [self.eot_token_id])[-room:]
        stop = [until] if isinstance(until, str) else until or []
        return Request(prompt, most, sampling, derive_seed(0, context, 1), stop=[text for text in stop if text])


def run_tasks(
    folder: Path, tasks: Sequence[str], *, include: Path | None, limit: int | None, device: str, batch_size: int
) -> Iterator[str]:
    """lm-evaluation-harness's own table of the `tasks`, its own or those of the .yaml files in the folder `include`.

    Raises ParameterError for a task that there is not.
    """
    manager = TaskManager(include_path=str(include) if include else None, include_defaults=False)
    if not all(map(manager.match_tasks, [[task] for task in tasks])):
        manager = TaskManager(include_path=str(include) if include else None)  # its own, ten thousand, take seconds
    if unknown := [task for task in tasks if not manager.match_tasks([task])]:
        place = f", nor in {include}" if include else "; --include names a folder with .yaml files of your own"
        raise ParameterError(f"{', '.join(unknown)}: no such task of lm-evaluation-harness{place}")
    model = HarnessModel(folder, device=device, batch_size=batch_size)
    results = lm_eval.simple_evaluate(
        model, tasks=list(tasks), limit=limit, task_manager=manager, bootstrap_iters=BOOTSTRAP_DRAWS, log_samples=False
    )
    yield make_table(results)
    if "groups" in results:
        yield make_table(results, "groups")
