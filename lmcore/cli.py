"""The commands beside the pipeline: to look at it, to use its models, to compare and trace what came out."""

import json
import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Annotated, Literal

import typer

from lmcore.errors import one_line, report_errors
from lmcore.files import project_root

Format = Literal["text", "markdown", "csv"]

app = typer.Typer(
    name="lmcore",
    help="Beside `dvc repro`: look at the project, write and serve with its models, compare and trace what came out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def recipe(
    name: Annotated[
        str, typer.Argument(help="A recipe, or a .yaml file of your own; without it, all are listed.")
    ] = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change and write nothing.")] = False,
) -> None:
    """List the recipes, or write one into params.yaml."""
    from lmcore.commands.recipes import apply_recipe, find_recipe, list_recipes, tabulate_recipes
    from lmcore.params import read_params

    root = project_root()
    if name:
        apply_recipe(find_recipe(name, root / "recipes"), root / "params.yaml", dry_run=dry_run)
        return
    _print(tabulate_recipes(list_recipes(root / "recipes"), read_params(root / "params.yaml")))


@app.command()
def doctor() -> None:
    """Say how machine and project are, and what mends what is wrong; exit status 1 if something needs you."""
    from lmcore.commands.doctor import examine

    findings = list(examine(project_root()))
    _print(map(str, findings))
    raise typer.Exit(int(any(finding.needs_user for finding in findings)))


@app.command()
def tokenizers(
    first: Annotated[
        str, typer.Argument(help="A folder, as models/tokenizer, ours or Hugging Face's; or a name of tiktoken's.")
    ],
    second: Annotated[str, typer.Argument(help="Another one.")],
    text: Annotated[
        Path | None, typer.Option(help="A text file or a folder; without it, data/documents/validation.")
    ] = None,
) -> None:
    """Compare two tokenizers on a text: bytes per token, round trip, speed, and the words that they cut otherwise."""
    from lmcore.commands.tokenizers import compare_tokenizers

    _print(compare_tokenizers((first, second), text or project_root() / "data" / "documents" / "validation"))


ModelName = Annotated[str, typer.Argument(help="A model's folder, ours or Hugging Face's; or its name on the hub.")]
Temperature = Annotated[float | None, typer.Option(help="0 takes the likeliest token.")]
NewTokens = Annotated[int | None, typer.Option("--max-new-tokens", "-n", help="Tokens of each text.")]
Stop = Annotated[list[str] | None, typer.Option(help="A text before which it ends; may be given several times.")]
Drafts = Annotated[int | None, typer.Option("--draft-tokens", help="Draft tokens per forward, from the text so far.")]
DecoderName = Annotated[str | None, typer.Option("--decoder", help="As sample.decoder in params.yaml.")]
WeightType = Annotated[str | None, typer.Option("--weights", help="As sample.weights in params.yaml.")]
Compile = Annotated[bool, typer.Option("--compile", help="Takes 5 to 60 s, then each token comes faster.")]


@app.command()
def sample(
    model: ModelName = "models/gpt",
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="How a text begins; - reads it from standard input.")
    ] = None,
    samples: Annotated[int | None, typer.Option("--samples", help="Of each prompt.")] = None,
    max_new_tokens: NewTokens = None,
    temperature: Temperature = None,
    top_k: int | None = None,
    top_p: float | None = None,
    min_p: float | None = None,
    repetition_penalty: float | None = None,
    stop: Stop = None,
    seed: int | None = None,
    draft_tokens: Drafts = None,
    decoder: DecoderName = None,
    weights: WeightType = None,
    compile: Compile = False,  # noqa: A002
) -> None:
    """Let a model go on with prompts, shown as it comes; what is not given is as params.yaml's sample section says."""
    from lmcore.params import read_params
    from lmcore.serve.terminal import Writer, print_samples, read_prompts

    values = read_params(project_root() / "params.yaml")
    changes = {
        "prompts": read_prompts(prompt),
        "samples_per_prompt": samples,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "stop": stop,
        "seed": seed,
        "draft_tokens": draft_tokens,
        "decoder": decoder,
        "weights": weights,
    }
    print_samples(Writer(model, values, changes, compile=compile))


@app.command()
def chat(
    model: ModelName = "models/gpt",
    max_new_tokens: NewTokens = None,
    temperature: Temperature = None,
    stop: Stop = None,
    draft_tokens: Drafts = None,
    decoder: DecoderName = None,
    weights: WeightType = None,
    compile: Compile = False,  # noqa: A002
) -> None:
    """Write a text in turns with a model."""
    from lmcore.params import read_params
    from lmcore.serve.terminal import Writer, converse

    changes = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "stop": stop,
        "draft_tokens": draft_tokens,
        "decoder": decoder,
        "weights": weights,
    }
    converse(Writer(model, read_params(project_root() / "params.yaml"), changes, compile=compile))


@app.command()
def compare(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="DVC experiments, workspace, commits, MLflow runs; without them, the commit's experiments."
        ),
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="A metric as evaluate.bits_per_byte; may be given several times.")
    ] = None,
    baseline: Annotated[str, typer.Option(help="The run that the others are compared with; else the first.")] = "",
    sort: Annotated[str, typer.Option(help="A column to sort by; -COLUMN for the largest first.")] = "",
    form: Annotated[Format, typer.Option("--format", help="How the table is written.")] = "text",
    plot: Annotated[
        Path | None, typer.Option(help="An .svg or .png file for a picture of the metric over what differs.")
    ] = None,
    curves: Annotated[Path | None, typer.Option(help="And one for the validation losses over the tokens seen.")] = None,
) -> None:
    """Compare experiments: means and deviations over seeds, and which differences are more than chance."""
    from lmcore.experiments.compare import compare_experiments
    from lmcore.experiments.picture import plot_curves, plot_metrics
    from lmcore.experiments.table import render

    comparison = compare_experiments(runs or [], project_root(), metric or [], baseline, sort)
    if plot is not None:
        plot_metrics(comparison, plot, every_metric=bool(metric))
    if curves is not None:
        plot_curves(comparison, project_root(), curves)
    _print(render(comparison, form))
    for number, note in enumerate(comparison.notes):
        # A program reads CSV from standard output: there the notes would be rows.
        if form != "csv" and not number:
            typer.echo()
        typer.echo(f"- {note}" if form == "markdown" else note, err=form == "csv")


@app.command()
def search(
    settings: Annotated[
        list[str],
        typer.Option("--set-param", "-S", help="NAME=log(LOW,HIGH), linear(LOW,HIGH), choice(A,B), or a value of all."),
    ],
    metric: Annotated[
        str, typer.Option(help="STAGE.NAME, to be made small; the pipeline runs as far as the stage.")
    ] = "evaluate.bits_per_byte",
    trials: Annotated[int, typer.Option(min=1, help="Of the whole search, those of earlier calls among them.")] = 20,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, help="Trials at once.")] = 1,
    name: Annotated[str, typer.Option("--name", "-n", help="Of the search, and its trials' beginning.")] = "search",
    seed: Annotated[int, typer.Option(help="Of what is tried.")] = 1,
) -> None:
    """Search parameters with Optuna, each trial an experiment; the same command goes on. Needs the extra `search`."""
    from lmcore.experiments.search import search as run_search

    _print(run_search(settings, metric, project_root(), trials=trials, jobs=jobs, name=name, seed=seed))


@app.command()
def harness(
    model: ModelName,
    tasks: Annotated[list[str], typer.Argument(help="Tasks of lm-evaluation-harness, as hellaswag.")],
    include: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="A folder with .yaml files of further tasks.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Documents of each task, the first; else all.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Texts at once.")] = 32,
) -> None:
    """Measure a model by tasks of lm-evaluation-harness, and print its table; needs the extra `eval`."""
    from lmcore.commands.harness import run_tasks
    from lmcore.hardware.params import HardwareParams
    from lmcore.hardware.resolve import choose_device
    from lmcore.hub import find_model
    from lmcore.params import parse_section, read_params

    values = read_params(project_root() / "params.yaml")
    device = choose_device(parse_section(HardwareParams, "hardware", values.get("hardware")), values)
    folder = find_model(model, None).folder
    _print(run_tasks(folder, tasks, include=include, limit=limit, device=device, batch_size=batch_size))


@app.command()
def serve(
    model: ModelName = "models/gpt",
    host: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in: set a key then.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8000,
    batch: Annotated[int, typer.Option(min=1, help="Active texts at most.")] = 64,
    queue: Annotated[int, typer.Option(min=0, help="Texts that may wait; more are rejected (429).")] = 256,
    max_tokens: Annotated[int, typer.Option(min=1, help="The most that a request may ask for.")] = 4096,
    weights: Annotated[str, typer.Option(help="As sample.weights in params.yaml; int8 is for a CPU.")] = "float32",
    draft_tokens: Annotated[
        int | None, typer.Option(min=1, help="Draft tokens per forward, from the text so far.")
    ] = None,
    compile: Compile = False,  # noqa: A002
    grace: Annotated[float, typer.Option(min=0.0, max=86400.0, help="Seconds for what is open at the end.")] = 30.0,
    api_key_file: Annotated[Path | None, typer.Option(help="Clients must show its word; or LMCORE_API_KEY.")] = None,
) -> None:
    """Serve a model by HTTP as OpenAI's completions API has it, and a page in which to see it write."""
    from lmcore.params import read_params
    from lmcore.serve.params import ServerParams
    from lmcore.serve.server import read_api_key, serve

    params = ServerParams(model, host, port, queue, max_tokens, grace, read_api_key(api_key_file))
    values = read_params(project_root() / "params.yaml")
    serve(params, values, weights, batch=batch, draft_tokens=draft_tokens, compile=compile)


@app.command()
def validate(
    name: Annotated[
        str, typer.Argument(help="A model's folder, as models/gpt, ours or Hugging Face's; or its name on the hub.")
    ],
    prompt: Annotated[str, typer.Option(help="What both go on from.")] = "The meaning of life is",
) -> None:
    """Compare what lmcore and transformers make of a model; exit status 1 if more than rounding is between them."""
    from lmcore.commands.validate import validate_model

    validation = validate_model(name, prompt)
    _print(validation.describe())
    raise typer.Exit(int(not validation.difference.is_rounding))


AsJson = Annotated[bool, typer.Option("--json", help="All of it, with whole checksums: docs/lineage.md.")]


@app.command()
def trace(
    what: Annotated[
        str,
        typer.Argument(
            help="What the pipeline made, as reports/samples/samples.jsonl:3; a run's key, MLflow name or id; a DVC "
            "experiment; a commit; a copied model's folder."
        ),
    ],
    quick: Annotated[
        bool, typer.Option("--quick", help="Compare sizes of what stages made, and read their bytes not.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Follow a result back to the bytes that it was made from; exit status 1 if something no longer matches."""
    from lmcore.lineage import report
    from lmcore.lineage.trace import trace as follow

    with redirect_stdout(sys.stderr if as_json else sys.stdout):  # progress; the JSON is to be alone
        found = follow(what, quick=quick)
    lines = map(one_line, report.render_trace(found))
    _print([json.dumps(report.describe_trace(found), indent=2)] if as_json else lines)
    raise typer.Exit(int(bool(found.mismatches)))


@app.command()
def verify(
    paths: Annotated[list[str] | None, typer.Argument(help="What to read; without them, all that was made.")] = None,
    cache: Annotated[bool, typer.Option("--cache", help="Read DVC's copies too, where they are other files.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read everything on the disk again and compare it with what was recorded; exit status 1 if it differs."""
    from lmcore.lineage import report
    from lmcore.lineage.verify import verify as read_again

    with redirect_stdout(sys.stderr if as_json else sys.stdout):
        found = read_again(paths or (), cache=cache)
    lines = map(one_line, report.render_verification(found))
    _print([json.dumps(report.describe_verification(found), indent=2)] if as_json else lines)
    raise typer.Exit(int(not found.is_sound))


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        typer.echo(line)


@app.command()
def register(
    run: Annotated[str, typer.Argument(help="A run's MLflow id, key or name; without it, the run of models/gpt.")] = "",
    name: Annotated[str, typer.Option(help="The registered model.")] = "gpt",
    alias: Annotated[str, typer.Option(help="What this version of it is from now on; empty: nothing.")] = "champion",
) -> None:
    """Register a run's model in MLflow under a name and an alias, and say how it is served."""
    from lmcore.tracking.registry import register_model

    _print(register_model(run, name, alias, project_root() / "models" / "gpt"))


@app.command()
def ship(
    key: Annotated[str, typer.Argument(help="The run, as runs/ names it; without it, the run of models/gpt.")] = "",
) -> None:
    """Send to the trackers what they lack of a run that has ended, because they were away."""
    from lmcore.params import read_params
    from lmcore.tracking.session import ship_run

    root = project_root()
    raise typer.Exit(int(not ship_run(key, root, read_params(root / "params.yaml"))))


def main() -> None:
    """What the command `lmcore` runs."""
    with report_errors():
        app()
