"""Beside the pipeline: `lmcore recipe`, `doctor`, `tokenizers`, `sample`, `chat`, `compare`, `search`, `harness`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from lmcore.errors import report_errors
from lmcore.files import project_root

Format = Literal["text", "markdown", "csv"]

app = typer.Typer(
    name="lmcore",
    help="Beside `dvc repro`: sets of parameters, what is wrong here, samples, benchmarks, comparisons.",
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
    from lmcore.params import read_params
    from lmcore.recipes import apply_recipe, find_recipe, list_recipes, tabulate_recipes

    root = project_root()
    if name:
        apply_recipe(find_recipe(name, root / "recipes"), root / "params.yaml", dry_run=dry_run)
        return
    for line in tabulate_recipes(list_recipes(root / "recipes"), read_params(root / "params.yaml")):
        typer.echo(line)


@app.command()
def doctor() -> None:
    """Say how machine and project are, and what mends what is wrong; exit status 1 if something needs you."""
    from lmcore.doctor import examine

    findings = list(examine(project_root()))
    for finding in findings:
        typer.echo(str(finding))
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
    from lmcore.tokenizer_report.comparison import compare_tokenizers

    for line in compare_tokenizers((first, second), text or project_root() / "data" / "documents" / "validation"):
        typer.echo(line)


ModelName = Annotated[str, typer.Argument(help="A model's folder, ours or Hugging Face's; or its name on the hub.")]
Temperature = Annotated[float | None, typer.Option(help="0 takes the likeliest token.")]
NewTokens = Annotated[int | None, typer.Option("--max-new-tokens", "-n", help="Tokens of each text.")]
Stop = Annotated[list[str] | None, typer.Option(help="A text before which it ends; may be given several times.")]
Drafts = Annotated[int | None, typer.Option("--draft-tokens", help="Tokens guessed at once from the text so far.")]
WeightType = Annotated[str | None, typer.Option("--weights", help="float32, bfloat16 or int8.")]
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
    top_k: Annotated[int | None, typer.Option()] = None,
    top_p: Annotated[float | None, typer.Option()] = None,
    min_p: Annotated[float | None, typer.Option()] = None,
    repetition_penalty: Annotated[float | None, typer.Option()] = None,
    stop: Stop = None,
    seed: Annotated[int | None, typer.Option()] = None,
    draft_tokens: Drafts = None,
    weights: WeightType = None,
    compile: Compile = False,  # noqa: A002
) -> None:
    """Let a model go on with prompts, shown as it comes; what is not given is as params.yaml's sample section says."""
    from lmcore.params import read_params
    from lmcore.terminal import Writer, print_samples, read_prompts

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
    weights: WeightType = None,
    compile: Compile = False,  # noqa: A002
) -> None:
    """Write a text in turns with a model."""
    from lmcore.params import read_params
    from lmcore.terminal import Writer, converse

    changes = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "stop": stop,
        "draft_tokens": draft_tokens,
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
    from lmcore.compare.comparison import compare_experiments
    from lmcore.compare.picture import plot_curves, plot_metrics
    from lmcore.compare.table import render

    comparison = compare_experiments(runs or [], project_root(), metric or [], baseline, sort)
    if plot is not None:
        plot_metrics(comparison, plot, every_metric=bool(metric))
    if curves is not None:
        plot_curves(comparison, project_root(), curves)
    for line in render(comparison, form):
        typer.echo(line)
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
    from lmcore.search import search as run_search

    for line in run_search(settings, metric, project_root(), trials=trials, jobs=jobs, name=name, seed=seed):
        typer.echo(line)


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
    from lmcore.evaluate.harness import run_tasks
    from lmcore.hardware import HardwareParams, choose_device
    from lmcore.hub import find_model
    from lmcore.params import parse_section, read_params

    values = read_params(project_root() / "params.yaml")
    device = choose_device(parse_section(HardwareParams, "hardware", values.get("hardware")), values)
    for line in run_tasks(
        find_model(model, None).folder, tasks, include=include, limit=limit, device=device, batch_size=batch_size
    ):
        typer.echo(line)


@app.command()
def validate(
    name: Annotated[
        str, typer.Argument(help="A model's folder, as models/gpt, ours or Hugging Face's; or its name on the hub.")
    ],
    prompt: Annotated[str, typer.Option(help="What both go on from.")] = "The meaning of life is",
) -> None:
    """Compare what lmcore and transformers make of a model; exit status 1 if more than rounding is between them."""
    from lmcore.validate import validate_model

    validation = validate_model(name, prompt)
    for line in validation.describe():
        typer.echo(line)
    raise typer.Exit(int(not validation.is_same))


def main() -> None:
    """What the command `lmcore` runs."""
    with report_errors():
        app()
