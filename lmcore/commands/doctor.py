"""Checks of this machine and this project, each with the command that mends what it finds."""

import json
import platform
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from configparser import Error as ConfigError
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from lmcore.commands.forecast import EXPLANATION, forecast, measure_peak
from lmcore.commands.killed import Finding, check_experiments, explain_no_branch, find_killed_run
from lmcore.errors import ArtifactError, LmcoreError, ParameterError
from lmcore.experiments.queue import read_command, require_owner
from lmcore.files import read_json
from lmcore.hardware.measure import available_memory, total_memory
from lmcore.lineage.lock import LOCK, TORN
from lmcore.lineage.provenance import find_changed_sources
from lmcore.lineage.runs import describe_run
from lmcore.model.params import ModelParams
from lmcore.params import Change, Section, compare_values, parse_section, read_params
from lmcore.runtime.locks import is_locked
from lmcore.runtime.progress import show_bytes, show_count, show_duration
from lmcore.train.params import TrainParams

PACKAGES = {"torch": "torch", "DVC": "dvc", "MLflow": "mlflow"}
MADE = ("data", "models", "reports", "runs")
SPARE_CHECKPOINTS = 3  # beside train.keep_checkpoints: the best, the end of a constant phase, the one being written
# Settings of DVC's remotes that are secrets (dvc/config_schema.py); names of users and of keys are none.
SECRETS = {
    *("account_key", "client_secret", "connection_string", "gdrive_client_secret", "oss_key_secret", "passphrase"),
    *("password", "sas_token", "secret_access_key", "session_token", "sse_customer_key", "token"),
}


def examine(root: Path) -> Iterator[Finding]:
    """All findings on the project in `root`. Raises ParameterError if there is none."""
    if not (root / "dvc.yaml").exists():
        raise ParameterError(f"{root} holds no dvc.yaml: run in the project's folder")
    for check in (
        check_versions,
        check_params,
        check_sources,
        check_git,
        check_experiments,
        check_lock_file,
        check_dvc_at_work,
        check_secrets,
        check_leftovers,
    ):
        yield from check(root)


def check_versions(_root: Path) -> Iterator[Finding]:
    """The versions of Python and the packages that matter most."""
    found = [f"Python {platform.python_version()}"]
    for name, package in PACKAGES.items():
        try:
            found.append(f"{name} {version(package)}")
        except PackageNotFoundError:
            yield Finding(f"{name} is not installed", "make setup", needs_user=True)
    yield Finding(", ".join(found))


def check_params(root: Path) -> Iterator[Finding]:
    """params.yaml beside this machine and beside the trainings that stopped."""
    try:
        values = read_params(root / "params.yaml")
        yield from _compare_resources(root, values)
        yield from _find_unfinished_runs(root, values)
    except LmcoreError as error:
        yield Finding(str(error), "edit params.yaml", needs_user=True)


def check_sources(root: Path) -> Iterator[Finding]:
    """Text and tokens that DVC does not watch, when they are no longer what the project was made of."""
    yield from (Finding(mismatch.text, mismatch.remedy) for mismatch in find_changed_sources(root))


def _compare_resources(root: Path, values: Mapping[str, Any]) -> Iterator[Finding]:
    """Compare what params.yaml asks for with the processor or GPU, memory, time and disk that are available."""
    predicted = forecast(values)
    hardware, size, memory = predicted.hardware, predicted.size, predicted.memory
    compiled = "compiled" if hardware.compile else "not compiled"
    peak = measure_peak(hardware.device, hardware.precision)
    yield Finding(
        f"hardware: profile {hardware.profile}, {hardware.processes} x {hardware.device}, {hardware.precision} "
        f"({hardware.precision_reason}), {hardware.threads} threads, {compiled} ({hardware.compile_reason}), "
        f"matrix products measured at {peak / 1e9:,.0f} GFLOP/s"
    )
    yield Finding(
        f"params.yaml: {show_count(size.parameters)} parameters, {show_count(size.tokens)} tokens, about "
        f"{show_duration(predicted.seconds)} of training here (estimated: {EXPLANATION})"
    )
    if predicted.obstacle:
        yield Finding(f"memory: {predicted.obstacle}", "change params.yaml so", needs_user=True)
    else:
        yield Finding(
            f"memory: a step of {hardware.micro_batch_size} sequences needs {show_bytes(memory.total)} (estimated), "
            f"{show_bytes(available_memory(hardware.device))} of {show_bytes(total_memory(hardware.device))} are free"
        )
    checkpoints = parse_section(TrainParams, "train", values["train"]).keep_checkpoints + SPARE_CHECKPOINTS
    shards = hardware.processes if hardware.sharding == "full" else 1
    needed, free = checkpoints * (memory.parameters + memory.optimizer) * shards, shutil.disk_usage(root).free
    remedy = "free some space, or lower train.keep_checkpoints" if free < needed else None
    text = f"disk: {show_bytes(free)} free, checkpoints take up to {show_bytes(needed)}"
    yield Finding(text, remedy, needs_user=free < needed)


def _find_unfinished_runs(root: Path, values: Mapping[str, Any]) -> Iterator[Finding]:
    """The trainings that are under way, and those that stopped, with the way to go on."""
    kinds: dict[str, type[Section]] = {"model": ModelParams, "train": TrainParams}
    current = {name: parse_section(kind, name, values.get(name)).model_dump() for name, kind in kinds.items()}
    for path in sorted(root.glob("runs/*/identity.json")):
        run = f"runs/{path.parent.name}"
        described = describe_run(root, path.parent.name)
        if described["complete"]:
            continue
        lock, step = root / f"{run}.lock", max(described["checkpoints"], default=0)
        if is_locked(lock):
            yield Finding(f"{run} is being trained by {_name_holders(lock)}, last saved at step {step}")
            continue
        remove = f"rm -r {run}"
        try:
            identity = read_json(path, remove)
            if identity["model"].keys() != current["model"].keys():
                text = f"{run} stopped at step {step} in another version of lmcore and does not go on"
                yield Finding(text, remove, needs_user=True)
                continue
            wanted = compare_values(current, {section: identity[section] for section in current})
        except (LmcoreError, KeyError, AttributeError):
            yield Finding(f"{run}/identity.json is damaged", remove, needs_user=True)
            continue
        text = f"{run} stopped at step {step} and goes on where text and tokenizer are those it began with"
        yield Finding(text, f"{_go_on(wanted)}, or {remove}", needs_user=True)


def _go_on(changes: list[Change]) -> str:
    """The command that goes on with a run whose parameters differ from params.yaml by `changes`."""
    settings = []
    for change in changes:
        value = json.dumps(change.new).strip('"')
        if isinstance(change.new, dict):
            value = f"{{{','.join(f'{key}:{json.dumps(entry)}' for key, entry in change.new.items())}}}"
            if change.old:  # `-S` keeps the names that a key has unless it is emptied first
                settings.append(f"{change.section}.{change.key}=null")
        settings.append(f"{change.section}.{change.key}={value}")
    return " ".join(["dvc exp run", *(f"-S {shlex.quote(each)}" for each in settings)]) if settings else "dvc repro"


def _name_holders(path: Path) -> str:
    """The processes that have the file open: the one that holds it, and those that wait for it."""
    holders = [
        f"process {process.pid} ({read_command(process.pid)})"
        for process in psutil.process_iter(["open_files"])
        if any(file.path == str(path.resolve()) for file in process.info["open_files"] or ())  # None: somebody else's
    ]
    return ", ".join(holders) or "another process"


def check_git(root: Path) -> Iterator[Finding]:
    """The state of the git repository, and what a killed `dvc exp run` has left in it."""
    if not shutil.which("git"):
        yield Finding("git is not installed, and DVC needs it", "install git", needs_user=True)
        return
    command = ["git", "status", "--porcelain=v2", "--branch"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if result.returncode:
        text, remedy = f"git: {result.stderr.strip().partition(chr(10))[0]}", "git init"
        try:
            require_owner(result.stderr)
        except ArtifactError as error:
            text, _, remedy = str(error).partition(": ")
        yield Finding(text, remedy, needs_user=True)
        return
    lines = result.stdout.splitlines()
    facts = dict(line[2:].split(" ", 1) for line in lines if line.startswith("# "))
    changed = len(lines) - len(facts)
    branch, commit = facts["branch.head"], facts["branch.oid"][:7]
    if killed := find_killed_run(root, changed):  # what has changed is an experiment's then, and not to be committed
        yield killed
        return
    if branch == "(detached)":
        yield explain_no_branch(root, commit)
    if changed:
        yield Finding(f"git: {changed} files differ from commit {commit}: what runs now has no commit", "git commit -a")
    else:
        yield Finding(f"git: nothing differs from commit {commit}")


def check_lock_file(root: Path) -> Iterator[Finding]:
    """DVC writes dvc.lock in place: a kill -9 or a power cut at that moment leaves it empty or cut off."""
    path = root / LOCK
    with suppress(ParameterError):
        if not path.exists() or "schema" in read_params(path):
            return
    yield Finding(f"{LOCK} is damaged, and DVC will not start", TORN, needs_user=True)


def check_dvc_at_work(root: Path) -> Iterator[Finding]:
    """Find the processes that hold DVC's lock. An entry of a killed one counts again when its number is reused."""
    path = root / ".dvc" / "tmp" / "rwlock"
    remove = f"rm {path.relative_to(root)}"
    if not path.exists():
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        entries = [entry for entries in content.get("read", {}).values() for entry in entries]
        holders = {(entry["pid"], entry["cmd"]) for entry in [*entries, *content.get("write", {}).values()]}
    except (ValueError, LookupError, AttributeError, TypeError):
        yield Finding(".dvc/tmp/rwlock is damaged, and DVC will not start", remove, needs_user=True)
        return
    for pid, told in sorted(holders):
        command = read_command(pid)
        if command is None:
            yield Finding(f".dvc/tmp/rwlock names process {pid} (`{told}`), which is gone; DVC passes over it", remove)
        elif "dvc" in command:
            yield Finding(f"`{told}` is at work as process {pid}")
        else:
            text = f".dvc/tmp/rwlock names process {pid} (`{told}`), which is another program now, and DVC waits for it"
            yield Finding(text, remove, needs_user=True)


def check_secrets(root: Path) -> Iterator[Finding]:
    """Passwords that `dvc remote modify` without --local has put into .dvc/config, which git keeps."""
    parser = ConfigParser(interpolation=None, strict=False)
    try:
        parser.read(root / ".dvc" / "config", encoding="utf-8")
    except (ConfigError, UnicodeDecodeError) as error:
        text = f".dvc/config is damaged: {error}".splitlines()[0]
        yield Finding(text, "git checkout .dvc/config", needs_user=True)
        return
    for section in parser.sections():
        kind, _, quoted = section.strip("'").partition(" ")
        remote = quoted.strip('"')
        for key, value in parser[section].items() if kind == "remote" else ():
            if key in SECRETS:
                drop = f"dvc remote modify --unset {remote} {key}"
            elif key == "url" and urlsplit(value).password:
                drop = f"dvc remote modify {remote} url URL"
            else:
                continue
            text = f".dvc/config, which git has, holds a secret of the remote {remote}: {key}"
            keep = f"dvc remote modify --local {remote} {'password' if key == 'url' else key} VALUE"
            yield Finding(text, f"{drop}; {keep}; a new secret if this one was pushed", needs_user=True)


def check_leftovers(root: Path) -> Iterator[Finding]:
    """`.NAME.partial-PID`, where killed processes were writing NAME; whoever writes NAME next removes them."""
    pattern = ".*.partial-*"
    for place in sorted([*root.glob(pattern), *(path for name in MADE for path in (root / name).rglob(pattern))]):
        named = re.fullmatch(r"\.(.+)\.partial-(\d+)", place.name)
        if not named or read_command(int(named[2])) is not None:
            continue
        target, shown = place.with_name(named[1]), place.relative_to(root)
        remove = f"rm -r {shlex.quote(str(shown))}"
        if (place / "old").exists() and not target.exists():  # killed between two renames
            restore = f"mv {shlex.quote(f'{shown}/old')} {shlex.quote(str(target.relative_to(root)))}"
            yield Finding(f"{shown}/old is all there is of {target.name}", f"{restore} && {remove}", needs_user=True)
        else:
            yield Finding(f"{shown} was left by a process that was killed", remove)
