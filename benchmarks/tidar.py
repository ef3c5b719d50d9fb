"""Tokens per second of TiDAR's decoders beside plain decoding and prompt lookup, same model and prompts.

    python -m benchmarks.tidar models/gpt data/tokens                           # greedy, text by text
    python -m benchmarks.tidar models/gpt data/tokens --temperature 0.8
    python -m benchmarks.tidar models/gpt data/tokens --weights int8 --compile
    python -m benchmarks.tidar models/gpt data/tokens --batch 8

Prompts are pieces of the validation text. All sides, which take turns, decode the same text; this is checked where
rounding cannot change it (float32, not compiled).
"""

import argparse
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.timing import alternate
from lmcore.generate.decoder import Decoder, DecodingStats, Request
from lmcore.generate.open_decoder import open_decoder
from lmcore.generate.quantize import WEIGHT_TYPES, convert_weights
from lmcore.generate.sampling import Sampling
from lmcore.model.save_load import load_model
from lmcore.tokenizer.load import load_tokenizer
from lmcore.tokens.dataset import open_dataset

SIDES: dict[str, tuple[str, int | None]] = {
    "plain": ("plain", None),
    "prompt lookup": ("plain", 3),
    "tidar": ("tidar", None),
    "tidar-one-forward": ("tidar-one-forward", None),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Decode in turns and print what each side gave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("tokens", type=Path, help="of the model's tokenizer, as data/tokens")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--weights", choices=WEIGHT_TYPES, default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--texts", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=32, help="tokens of each")
    parser.add_argument("--new", type=int, default=None, help="tokens of each; what the context holds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    requests, decoders = build(arguments)
    texts = {side: decode(decoder, requests) for side, decoder in decoders.items()}
    if arguments.weights == "float32" and not arguments.compile:
        assert all(text == texts["plain"] for text in texts.values()), "a side says another text"
        print(f"the same text: {', '.join(texts)}")
    found = alternate({side: partial(measure, each, requests) for side, each in decoders.items()}, arguments.rounds)
    plain = [seconds for seconds, _ in found["plain"]]
    for side, measured in found.items():
        print(describe(side, measured[-1][1], [seconds for seconds, _ in measured], plain))


def measure(decoder: Decoder, requests: list[Request]) -> tuple[float, DecodingStats]:
    """Return the seconds of decoding, and its counts."""
    decoder.stats = DecodingStats()
    started = time.perf_counter()
    decode(decoder, requests)
    return time.perf_counter() - started, decoder.stats


def build(arguments: argparse.Namespace) -> tuple[list[Request], dict[str, Decoder]]:
    """The prompts, and a decoder for each side, of one model."""
    tokenizer = load_tokenizer(arguments.model)
    model = convert_weights(load_model(arguments.model, arguments.device), arguments.weights)
    split = open_dataset(arguments.tokens, tokenizer).validation
    new = arguments.new or model.params.context_length - arguments.prompt
    starts = np.linspace(0, len(split) - arguments.prompt, arguments.texts).astype(int)
    prompts = [split.read(int(start), arguments.prompt).tolist() for start in starts]
    sampling = Sampling(temperature=arguments.temperature)
    requests = [Request(prompt, new, sampling, seed) for seed, prompt in enumerate(prompts)]
    decoders = {
        side: open_decoder(
            model, tokenizer, batch=arguments.batch, draft_tokens=drafts, kind=kind, compile=arguments.compile
        )
        for side, (kind, drafts) in SIDES.items()
    }
    for decoder in decoders.values():
        decoder.end_of_text = -1  # all texts are as long
    return requests, decoders


def decode(decoder: Decoder, requests: list[Request]) -> list[list[int]]:
    """The texts."""
    texts: list[list[int]] = [[] for _ in requests]
    for token in decoder.decode(requests):
        texts[token.key].append(token.token)
    return texts


def describe(side: str, tally: DecodingStats, seconds: list[float], plain: list[float]) -> str:
    """One line of the table; the ratio is that of the medians."""
    median = statistics.median(seconds)
    given = ", ".join(f"{tokens}: {count / tally.forwards:.0%}" for tokens, count in sorted(tally.given.items()))
    return (
        f"{side:18} {tally.tokens / median:7,.0f} tokens/s  {statistics.median(plain) / median:.2f} x plain  "
        f"{tally.tokens / tally.forwards:.2f} tokens per forward ({given}), "
        f"{tally.accepted / max(1, tally.drafted):.0%} of the drafts right"
    )


if __name__ == "__main__":
    main()
