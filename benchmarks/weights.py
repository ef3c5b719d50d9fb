"""What weights of fewer bits lose: the loss of a trained model on the validation text, with each type of weights.

python -m benchmarks.weights models/gpt data/tokens      # after dvc repro
"""

import sys
from pathlib import Path

from lmcore.evaluate.loss import measure_loss
from lmcore.generate.quantize import WEIGHT_TYPES, convert_weights
from lmcore.model.save_load import load_model
from lmcore.tokenizer.load import load_tokenizer
from lmcore.tokens.dataset import open_dataset

WINDOWS_AT_ONCE = 8


def main() -> None:
    """Print a line for each type."""
    folder, tokens = map(Path, sys.argv[1:])
    tokenizer = load_tokenizer(folder)
    validation = open_dataset(tokens, tokenizer).validation
    for kind in WEIGHT_TYPES:
        model = convert_weights(load_model(folder), kind)
        loss = measure_loss(model, validation, tokenizer.byte_lengths, None, WINDOWS_AT_ONCE)
        print(f"{kind:9} {loss.loss:.6f} nats per token, {loss.bits_per_byte:.6f} bits per byte")


if __name__ == "__main__":
    main()
