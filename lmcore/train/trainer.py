"""One training run from start to outputs: build, restore, train, write."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lmcore.errors import ArtifactError
from lmcore.files import project_root
from lmcore.hardware.distributed import World
from lmcore.hardware.measure import keep_freed_memory, peak_memory_bytes
from lmcore.hardware.resolve import Hardware
from lmcore.hardware.signals import catch_signals
from lmcore.model.gpt import GPT
from lmcore.model.hf_architecture import explain_misfit, hugging_face_architecture
from lmcore.runtime.progress import TrainingProgress, say, warn
from lmcore.tokens.batches import Batches
from lmcore.tokens.checksums import VERIFIED, VerifiedFiles
from lmcore.tokens.dataset import TokenDataset
from lmcore.tracking.description import TrackedRun
from lmcore.train.branch import branch_off
from lmcore.train.checkpoint import Checkpoints
from lmcore.train.loop import Observers, Validate, train
from lmcore.train.lora import adapt_model, merge_adapters
from lmcore.train.loss import LanguageModelLoss
from lmcore.train.optimizer import build_optimizers
from lmcore.train.outputs import MODEL_FOLDER, write_outputs
from lmcore.train.params import TrainParams
from lmcore.train.plan import RunContext, confirm_micro_batch
from lmcore.train.run_state import Run, open_run, run_key
from lmcore.train.schedule import estimate_flops
from lmcore.train.sharding import distribute, gather_tensor
from lmcore.train.state import TrainState

Begin = Callable[[Path, dict[str, Any]], None]
Track = Callable[[TrackedRun], AbstractContextManager[None]]


def run_training(
    model: GPT,
    context: RunContext,
    dataset: TokenDataset,
    batches: Batches,
    *,
    origin: dict[str, Any],
    validate: Validate,
    track: Track,
) -> None:
    """Train, or resume training, and write models/gpt, the metrics and the curve.

    The run is named by the parameters, by the data's fingerprints and by `origin` (what the weights were initialised
    from, if not drawn), not by the machine, so that it may go on elsewhere. Nothing is written to models/ and reports/
    before the run is at its end; until then, and after, its state lies in runs/KEY.
    """
    started = time.monotonic()
    adapt_model(model, context.params)
    context = confirm_micro_batch(model, context)
    params, hardware, world = context.params, context.hardware, context.world
    state = build_state(model, params, hardware, world)
    # The numbers depend on these.
    science = {"model": model.params.model_dump(), "train": params.model_dump()}
    fingerprints = {**dataset.fingerprints, **origin}
    announce(model, batches, context)
    begin = partial(branch_off, schedule=context.schedule, batches=batches)
    with (
        enter_run(project_root() / "runs", {**science, **fingerprints}, world, begin) as (folder, run),
        Checkpoints(folder / "checkpoints", params.keep_checkpoints) as checkpoints,
        catch_signals() as interrupt,
    ):
        step = restore(state, checkpoints, world)
        if world.is_main:
            say(f"run {folder.name}: " + (f"going on from step {step}" if step else "starting"))
        tracked = TrackedRun(folder, science, hardware.describe(), dataset.fingerprints, MODEL_FOLDER)
        # Tokens per second, if the machine did nothing but the model's matrix products.
        peak = hardware.peak_flops and hardware.peak_flops / estimate_flops(model.count_parameters(), 1)
        steps, tokens = context.schedule.steps, batches.tokens_per_step
        with (
            track(tracked) if world.is_main else nullcontext(),
            TrainingProgress(step, steps, tokens, peak_tokens_per_second=peak, shown=world.is_main) as progress,
        ):
            train(state, batches, context, Observers(run, checkpoints, progress, interrupt), validate, step)
            checkpoints.finish()
            with state.averaged():
                whole = gather_model(state)
                if run is not None:
                    write_outputs(run, whole, science, fingerprints, dataset.tokenizer, batches.figures)
        if run is not None:
            speed = {name: round(value, 3) for name, value in progress.speed.items()}
            summary = {"seconds": round(time.monotonic() - started, 3), **speed}
            run.complete({**summary, "peak_memory_bytes": peak_memory_bytes(), "hardware": hardware.describe()})


def open_batches(params: TrainParams, context_length: int, dataset: TokenDataset, world: World) -> Batches:
    """The training batches, once the main process has found every file sound; the others wait for its word."""
    if world.is_main:
        dataset.verify(VerifiedFiles(project_root() / VERIFIED))
    world.barrier()
    return Batches(
        dataset.train,
        params.batch_size,
        context_length,
        params.seed,
        packing=params.packing,
        jitter=params.window_jitter,
        mixture=params.mixture,
    )


def build_state(model: GPT, params: TrainParams, hardware: Hardware, world: World) -> TrainState:
    """Put the model on its device and make of it what a step needs: compiled, distributed, with its optimizers."""
    if hardware.device == "cpu":
        keep_freed_memory()
    if hardware.device == "cpu" or params.deterministic:
        # A compiled step adds the embedding's gradient atomically: three processes gave three different weights.
        # With this they are equal, at no measurable cost on a CPU.
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if hardware.device == "cuda":
        torch.set_float32_matmul_precision("high")
    model.to(hardware.device).train()
    objective = LanguageModelLoss(model)
    if hardware.compile:
        objective.compile_parts()
    recompute = hardware.activation_checkpointing
    distributed = distribute(objective, world, hardware.sharding, hardware.device, activation_checkpointing=recompute)
    optimizers = build_optimizers(model, params, torch.float32 if hardware.precision == "fp32" else torch.bfloat16)
    with_average, is_fp16 = params.ema_decay is not None, hardware.precision == "fp16"
    return TrainState(model, distributed, optimizers, ema=with_average, fp16=is_fp16)


@contextmanager
def enter_run(runs: Path, identity: dict[str, Any], world: World, begin: Begin) -> Iterator[tuple[Path, Run | None]]:
    """The run's folder and, in the main process, which alone writes there, the run itself, locked."""
    if world.is_main:
        with open_run(runs, identity, begin) as run:
            world.barrier()
            yield run.folder, run
    else:
        world.barrier()
        yield runs / run_key(identity), None


def restore(state: TrainState, checkpoints: Checkpoints, world: World) -> int:
    """The step that the newest sound checkpoint has, its state put back; 0 without one.

    Raises ArtifactError where another process than the main one, which passes over what is damaged, finds another.
    """
    found = checkpoints.restore() if world.is_main else None
    newest = world.broadcast(found[0] if found else 0)
    found = found if world.is_main else checkpoints.restore()
    step, tensors = found or (0, None)
    if step != newest:
        raise ArtifactError(
            f"{checkpoints.folder}: process {world.rank + 1} finds step {step}, the main process step {newest}: all "
            f"machines must see the same files there; run the same command again if they are only slow to appear"
        )
    if tensors is not None:
        state.restore(tensors)
    return step


def gather_model(state: TrainState) -> GPT:
    """Return a plain model, without shards and adapters, of the same weights. All processes must call this."""
    model = merge_adapters(state.model)
    weights = {name: gather_tensor(weight.detach()) for name, weight in model.named_parameters()}
    return GPT.of_weights(model.params, model.vocab_size, weights, end_of_text=model.end_of_text)


def announce(model: GPT, batches: Batches, context: RunContext) -> None:
    """Say what follows from the parameters, the data and the machine, each with its derivation."""
    schedule, hardware, world = context.schedule, context.hardware, context.world
    if not world.is_main:
        return
    tokens = schedule.steps * batches.tokens_per_step
    share = batches.batch_size // world.size
    compiled = "compiled" if hardware.compile else "not compiled"
    say(f"model: {model.count_parameters():,} parameters, vocabulary {model.vocab_size:,} (the tokenizer's)")
    say(
        f"tokens: {schedule.steps:,} steps x {batches.batch_size} sequences x {batches.context_length} tokens "
        f"= {tokens:,}, or {tokens / batches.tokens:.2f} epochs of {batches.tokens:,}"
    )
    for line in batches.describe(schedule.steps):
        say(line)
    say(
        f"machine: profile {hardware.profile}, {world.size} x {hardware.device}, {hardware.precision} "
        f"({hardware.precision_reason}), {hardware.threads} threads, {hardware.micro_batch_size} of {share} "
        f"sequences at once, {compiled} ({hardware.compile_reason})"
    )
    if hugging_face_architecture(model.params) is None:
        warn(f"the export stage will refuse this model: {explain_misfit(model.params)}")
