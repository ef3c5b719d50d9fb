"""The commands beside the pipeline: `lmcore recipe`, `lmcore doctor`, `lmcore tokenizers`."""

from pathlib import Path
from typing import Annotated

import typer

from lmcore.errors import report_errors
from lmcore.files import project_root

app = typer.Typer(
    name="lmcore",
    help="Beside `dvc repro`: ready sets of parameters, what is wrong with this project, how tokenizers compare.",
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


def main() -> None:
    """What the command `lmcore` runs."""
    with report_errors():
        app()
