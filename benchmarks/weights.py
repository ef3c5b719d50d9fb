"""Validation loss of a trained model with each type of weights: float32, bfloat16, int8.

python -m benchmarks.weights models/gpt data/tokens      # after dvc repro
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lmcore.evaluate.loss import measure_loss
from lmcore.generate.quantize import WEIGHT_TYPES, convert_weights
from lmcore.model.save_load import load_model
from lmcore.tokenizer.load import load_tokenizer
from lmcore.tokens.dataset import open_dataset

WINDOWS_AT_ONCE = 8


def main(argv: Sequence[str] | None = None) -> None:
    """Print a line for each type."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("tokens", type=Path, help="of the model's tokenizer, as data/tokens")
    options = parser.parse_args(argv)
    tokenizer = load_tokenizer(options.model)
    validation = open_dataset(options.tokens, tokenizer).validation
    for kind in WEIGHT_TYPES:
        model = convert_weights(load_model(options.model), kind)
        loss = measure_loss(model, validation, tokenizer.byte_lengths, None, WINDOWS_AT_ONCE)
        print(f"{kind:9} {loss.loss:.6f} nats per token, {loss.bits_per_byte:.6f} bits per byte")


if __name__ == "__main__":
    main()
