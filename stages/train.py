"""train: fit the model to the tokens, or go on with an interrupted run."""

from functools import partial
from pathlib import Path

from lmcore.errors import report_errors
from lmcore.evaluate.loss import Loss, measure_loss
from lmcore.hardware import HardwareParams, resolve_hardware
from lmcore.model.gpt import GPT, ModelParams
from lmcore.params import read_params, read_section
from lmcore.tokenizer.load import load_tokenizer
from lmcore.tokens.batches import Batches
from lmcore.tokens.dataset import open_dataset
from lmcore.tracking import track_run
from lmcore.train.session import run_training
from lmcore.train.settings import TrainParams


def main() -> None:
    params = read_section(TrainParams, "train")
    model_params = read_section(ModelParams, "model")
    request, settings = read_section(HardwareParams, "hardware"), read_params()
    tokenizer = load_tokenizer(Path("models/tokenizer"))
    model = GPT(model_params, tokenizer.vocab_size, params.seed)
    flops = params.estimate_flops(model.count_parameters(), model_params.context_length)
    hardware = resolve_hardware(request, settings, params.batch_size, model_params.context_length, flops)
    dataset = open_dataset(Path("data/tokens"), tokenizer)
    batches = Batches(dataset.train, params.batch_size, model_params.context_length, params.seed)

    def validate(trained: GPT) -> Loss:
        lengths = dataset.tokenizer.byte_lengths
        return measure_loss(trained, dataset.validation, lengths, params.eval_windows, hardware.micro_batch_size)

    track = partial(track_run, settings=settings)
    run_training(model, params, hardware, dataset, batches, validate=validate, track=track)


if __name__ == "__main__":
    with report_errors():
        main()
