"""The commands beside the pipeline: `lmcore recipe`, `lmcore doctor`."""

from typing import Annotated

import typer

from lmcore.errors import report_errors
from lmcore.files import project_root

app = typer.Typer(
    name="lmcore",
    help="Beside `dvc repro`: ready sets of parameters, and what is wrong with this project.",
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


def main() -> None:
    """What the command `lmcore` runs."""
    with report_errors():
        app()
