"""train: fit the model to the tokens, or resume an interrupted run."""

from functools import partial
from pathlib import Path

from lmcore.errors import report_errors
from lmcore.evaluate.loss import measure_loss
from lmcore.hardware.distributed import follow_parent, join_world
from lmcore.hardware.params import HardwareParams
from lmcore.model.gpt import GPT
from lmcore.model.params import ModelParams
from lmcore.params import read_params, read_section
from lmcore.tokenizer.load import load_tokenizer
from lmcore.tokens.dataset import open_dataset
from lmcore.tracking.session import plan_tracking
from lmcore.train.init_from import load_initial_weights
from lmcore.train.params import TrainParams
from lmcore.train.plan import plan_run, start_processes
from lmcore.train.trainer import open_batches, run_training


def main() -> None:
    follow_parent()
    request, settings = read_section(HardwareParams, "hardware"), read_params()
    track = plan_tracking(settings)
    params, model_params = read_section(TrainParams, "train"), read_section(ModelParams, "model")
    dataset = open_dataset(Path("data/tokens"), load_tokenizer(Path("models/tokenizer")))
    with join_world(start_processes(request, settings, params.batch_size, "stages.train")) as world:
        batches = open_batches(params, model_params.context_length, dataset, world)
        context = plan_run(request, settings, params, model_params, batches, world)
        model = GPT(model_params, dataset.train.vocab_size, params.seed, end_of_text=dataset.train.end_of_text)
        origin = load_initial_weights(model, params.init_from, dataset.tokenizer)
        measure = partial(measure_loss, shards=dataset.validation, byte_lengths=dataset.tokenizer.byte_lengths)
        validate = partial(measure, windows=params.eval_windows, batch_size=context.hardware.micro_batch_size)
        run_training(model, context, dataset, batches, origin=origin, validate=validate, track=track)


if __name__ == "__main__":
    with report_errors():
        main()
