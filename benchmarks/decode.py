"""Tokens per second of decoding beside Hugging Face's `generate` and nanoGPT's `sample`, same weights and prompt.

    git clone https://github.com/karpathy/nanoGPT ../nanoGPT
    python -m benchmarks.decode --nanogpt ../nanoGPT                     # 10.6M parameters, 250 tokens of characters
    python -m benchmarks.decode --shape 124m --rounds 3                  # GPT-2's size, without nanoGPT
    python -m benchmarks.decode --sides lmcore lmcore,64 lmcore,compiled lmcore,64,compiled    # 64 texts over one

A side is `nanoGPT`, `transformers`, or `lmcore` and options after commas: `int8` weights, the `compiled` step, a number
of texts at once. All decode greedily, in turns, and give the same text (int8 nearly), which is checked first.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise, takewhile
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from benchmarks.nanogpt import build_nanogpt, copy_weights, use_tanh_gelu
from benchmarks.steps import SHAPES, gpt2_params
from benchmarks.turns import Draw, Step, time_in_turns
from lmcore.export.transformers_reference import import_transformers
from lmcore.generate.decoder import Decoder, Request
from lmcore.generate.quantize import convert_weights
from lmcore.generate.sampling import Sampling
from lmcore.model.gpt import GPT
from lmcore.model.hf_mapping import config_values, named_weights

PROMPT = [1, 2, 3, 4, 5]
NEVER = -1
Generate = Callable[[], list[int]]


def main(argv: Sequence[str] | None = None) -> None:
    """Compare the texts, the first tokens with the last ones, then the speed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanogpt", type=Path, help="a checkout of nanoGPT; without it that side is left out")
    parser.add_argument("--shape", choices=SHAPES, default="10m")
    parser.add_argument("--tokens", type=int, default=250, help="new ones of each text")
    parser.add_argument("--sides", nargs="+")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(argv)
    if "nanoGPT" in (arguments.sides or []) and not arguments.nanogpt:
        parser.error("the side nanoGPT needs --nanogpt")
    default = ["transformers", "lmcore", "lmcore,compiled", "lmcore,int8", "lmcore,int8,compiled", "lmcore,64"]
    sides = arguments.sides or [*(["nanoGPT"] if arguments.nanogpt else []), *default]
    compare_texts({side: build_side(arguments, side)() for side in sides})
    measure_flatness(arguments)
    builds = {side: partial(build_step, arguments, side) for side in sides}
    timings = time_in_turns(builds, arguments.rounds, steps=1)
    rates = {side: count_texts(side) * arguments.tokens / timing.seconds for side, timing in timings.items()}
    for side, rate in rates.items():
        ratios = ", ".join(f"{rate / other:.2f} x {name}" for name, other in rates.items() if name != side)
        print(f"{side:20} {rate:8,.0f} tokens/s  {timings[side].peak_memory / 1e9:.2f} GB  {ratios}")


def compare_texts(texts: dict[str, list[int]]) -> None:
    """Stop unless all sides but int8 say the same; print how far int8 does."""
    exact = {side: text for side, text in texts.items() if "int8" not in side}
    first = next(iter(exact.values()))
    for side, text in exact.items():
        assert text == first, f"{side} says another text"
    print(f"the same text: {', '.join(exact)}")
    for side, text in texts.items():
        if side not in exact:
            same = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(text, first, strict=True))))
            print(f"{side}: the same for {same} of {len(first)} tokens")


def count_texts(side: str) -> int:
    """`lmcore,64` -> 64."""
    return next((int(word) for word in side.split(",") if word.isdigit()), 1)


def build_step(arguments: argparse.Namespace, side: str) -> tuple[Step, Draw]:
    """A side as the turns want it: the whole text is one step."""
    generate = build_side(arguments, side)

    def step(_: Tensor) -> float:
        generate()
        return 0.0

    return step, partial(torch.zeros, 1)


def build_side(arguments: argparse.Namespace, side: str) -> Generate:
    """Return a function that decodes a text, or the first one where there are several."""
    model = build_model(arguments)
    if side == "nanoGPT":
        nanogpt = build_nanogpt(arguments.nanogpt, model.params, model.vocab_size).eval()
        copy_weights(model, nanogpt)
        use_tanh_gelu(nanogpt)
        return partial(run_nanogpt, nanogpt, arguments.tokens)
    if side == "transformers":
        library = import_transformers()
        values = config_values(model.params, model.vocab_size, "gpt2")
        config = library.GPT2Config(**values, bos_token_id=0, eos_token_id=None, pad_token_id=0)
        theirs = library.GPT2LMHeadModel(config).eval()
        theirs.load_state_dict(named_weights(model, "gpt2"), strict=False)
        theirs.tie_weights()
        return partial(run_transformers, theirs, arguments.tokens)
    words = side.split(",")[1:]
    convert_weights(model, "int8" if "int8" in words else "float32")
    decoder = Decoder(model, batch=count_texts(side), end_of_text=NEVER, compile="compiled" in words)
    return partial(run_ours, decoder, arguments.tokens)


def build_model(arguments: argparse.Namespace) -> GPT:
    """The same weights for every side, large enough that the text is not one token over and over."""
    params = gpt2_params(arguments.shape, context_length=len(PROMPT) + arguments.tokens)
    model = GPT(params, 50_257 if arguments.shape == "124m" else 65, seed=1).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(4 if weight.dim() > 1 and "embedding" not in name else 1)
    return model


@torch.inference_mode()
def run_nanogpt(model: Any, tokens: int) -> list[int]:
    """Its `sample.py` at top_k 1."""
    text: list[int] = model.generate(torch.tensor([PROMPT]), tokens, top_k=1)[0, len(PROMPT) :].tolist()
    return text


@torch.inference_mode()
def run_transformers(model: Any, tokens: int) -> list[int]:
    """Its greedy `generate` with its cache."""
    prompt = torch.tensor([PROMPT])
    found = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=tokens, do_sample=False)
    text: list[int] = found[0, len(PROMPT) :].tolist()
    return text


def run_ours(decoder: Decoder, tokens: int) -> list[int]:
    """All rows at once."""
    requests = [Request(PROMPT, tokens, Sampling(temperature=0))] * decoder.batch
    return [token.token for token in decoder.decode(requests) if token.key == 0]


def measure_flatness(arguments: argparse.Namespace) -> None:
    """Print the median time of a token at the end of a text over that at its beginning."""
    decoder = Decoder(build_model(arguments), batch=1, end_of_text=NEVER)
    run_ours(decoder, arguments.tokens)  # for the processor to wake up
    tokens = decoder.decode([Request(PROMPT, arguments.tokens, Sampling(temperature=0))])
    moments = [perf_counter() for _ in tokens]
    seconds = [end - start for start, end in pairwise(moments)]
    fifth = len(seconds) // 5
    first, last = (sorted(some)[fifth // 2] for some in (seconds[:fifth], seconds[-fifth:]))
    print(f"lmcore: a token in the last fifth of the text takes {last / first:.2f} x one in the first")


if __name__ == "__main__":
    main()
