"""Everything on the disk read again, and compared with dvc.lock, the manifests and the checkpoints' seals."""

import shlex
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmcore.errors import ArtifactError, ParameterError
from lmcore.files import project_root
from lmcore.lineage.dvc_files import Content, Project, list_places
from lmcore.lineage.integrity import Fault, check_checkpoint, check_manifest, check_weights
from lmcore.lineage.lock import LOCK, PIPELINE, TORN, Entry, Pipeline, read_pipeline
from lmcore.lineage.provenance import MANIFEST, Records
from lmcore.lineage.remedy import Mismatch, make_again, restore, show_object
from lmcore.lineage.runs import check_identity

OK, MISSING, DAMAGED, UNRECORDED = "ok", "missing", "damaged", "unrecorded"


@dataclass(frozen=True)
class Artefact:
    """What a stage made, a run's checkpoints, or DVC's cache; `state`: ok, missing, damaged, unrecorded.

    `missing` is not wrong in itself: it was never made here, or not fetched; `remedy` is the command that gets it.
    `unrecorded` is there and nothing says what it should be.
    """

    path: str
    stage: str | None
    state: str
    files: int
    bytes: int
    faults: tuple[Fault, ...] = ()
    remedy: str | None = None


@dataclass(frozen=True)
class Verification:
    """All artefacts; `mismatches` are records that contradict each other though each is as it was written."""

    artefacts: list[Artefact]
    mismatches: list[Mismatch]
    files: int
    bytes: int
    seconds: float

    @property
    def is_sound(self) -> bool:
        """Whether nothing is damaged and nothing contradicts; what is missing does not count."""
        return not self.mismatches and all(artefact.state in (OK, MISSING, UNRECORDED) for artefact in self.artefacts)


def verify(paths: Sequence[str] = (), *, cache: bool = False) -> Verification:
    """Read what lies at or below `paths`, or all of it; with `cache` also DVC's copies, where they are other files.

    Raises ParameterError for a path that nothing is known of, ArtifactError where DVC cannot open the project.
    """
    started = time.monotonic()
    root = project_root()
    if not (root / PIPELINE).exists():
        raise ParameterError(f"{root} holds no {PIPELINE}: run in the project's folder")
    pipeline, artefacts = _read_lock(root)
    project = Project(root)
    # In the pipeline's order, each with its stage and as it was recorded; None for what was not.
    outputs: dict[str, tuple[str, Entry | None]] = {
        **{path: (name, None) for name, stage in pipeline.described.items() for path in stage.outputs},
        **{entry.path: (name, entry) for name, stage in pipeline.stages.items() for entry in stage.outputs},
    }
    runs = sorted(path for path in (root / "runs").glob("*") if path.is_dir())
    chosen = _choose(paths, root, [*outputs, *(f"runs/{run.name}" for run in runs)])
    outputs = {path: found for path, found in outputs.items() if path in chosen}
    runs = [run for run in runs if f"runs/{run.name}" in chosen]
    project.read(outputs, "verify")
    files = [path for run in runs for path in run.glob("checkpoints/step-*.safetensors")]
    checkpoints = project.read_all(files, "verify the checkpoints")
    artefacts += [_verify_output(path, entry, stage, project, pipeline) for path, (stage, entry) in outputs.items()]
    artefacts += [_verify_run(run, checkpoints) for run in runs]
    if cache:
        artefacts.append(_verify_cache(project, outputs, artefacts))
    sound = {artefact.path for artefact in artefacts if artefact.state in (OK, UNRECORDED)}.intersection(outputs)

    def find(path: str, name: str) -> Path | None:  # what is damaged explains itself
        place = project.root / path / name
        return place if path in sound and place.is_file() else None

    return Verification(
        artefacts,
        list(Records(project, find).find_contradictions(pipeline)),
        sum(artefact.files for artefact in artefacts),
        project.bytes_read,
        time.monotonic() - started,
    )


def _read_lock(root: Path) -> tuple[Pipeline, list[Artefact]]:
    """The pipeline; where dvc.lock is missing or torn, without what it records, and that is an artefact of its own."""
    path = root / LOCK
    try:
        if path.exists():
            return read_pipeline(root), []
        remedy = "git checkout dvc.lock, or dvc repro where nothing was made yet"
        artefact = Artefact(LOCK, None, MISSING, 0, 0, remedy=remedy)
    except ArtifactError:
        fault = Fault(".", "is cut off, or was edited: DVC will not start")
        artefact = Artefact(LOCK, None, DAMAGED, 1, path.stat().st_size, (fault,), TORN)
    return read_pipeline(root, unrecorded=True), [artefact]


def _choose(paths: Sequence[str], root: Path, known: Sequence[str]) -> set[str]:
    """Those of `known` that lie at, below or above one of `paths`; all without any. Raises ParameterError."""
    chosen = set() if paths else set(known)
    for asked in paths:
        names = [Path(name) for name in list_places(asked, root)]
        found = {
            path for path in known for name in names if Path(path).is_relative_to(name) or name.is_relative_to(path)
        }
        if not found:
            raise ParameterError(f"{asked}: nothing is recorded of it; there are {', '.join(known)}")
        chosen |= found
    return chosen


def _verify_output(path: str, entry: Entry | None, stage: str, project: Project, pipeline: Pipeline) -> Artefact:
    """One output beside what dvc.lock and its own manifest say."""
    contents = project.contents(path)
    files, size = len(contents), sum(content.bytes for content in contents.values())
    place = project.root / path
    if not contents and not place.is_dir():
        remedy = restore(project, pipeline, stage, entry) if entry else f"dvc repro {stage}"
        return Artefact(path, stage, MISSING, 0, 0, remedy=remedy)
    faults = [Fault(name, content.error) for name, content in contents.items() if content.error]
    if entry is not None and project.hash(path) != entry.md5:
        faults += _compare(entry, contents, project)
    remedy = restore(project, pipeline, stage, entry) if entry and faults else make_again(stage)
    faulty = {fault.file for fault in faults}  # one word on a file is enough
    promises = (*check_manifest(path, place, contents), *check_weights(place, contents))
    faults += [fault for fault in promises if fault.file not in faulty]
    if not faults:
        state = OK if entry or (place / MANIFEST).exists() else UNRECORDED
        return Artefact(path, stage, state, files, size)
    return Artefact(path, stage, DAMAGED, files, size, tuple(faults), remedy)


def _compare(entry: Entry, contents: Mapping[str, Content], project: Project) -> Iterator[Fault]:
    """Which files are not as dvc.lock has them, and how DVC's cache has them."""
    recorded = project.list_recorded(entry)
    if recorded is None:
        text = f"the list of its files is not {entry.md5[:8]}, and DVC's cache has not the list that was recorded"
        yield Fault(".", text)
        return
    for name in sorted(recorded.keys() | contents.keys()):
        found, md5 = contents.get(name), recorded.get(name, "")
        if found is None:
            yield Fault(name, f"is gone{_tell_cached(md5, None, project)}")
        elif not md5 and not found.error:
            yield Fault(name, f"is there beside what {LOCK} records")
        elif found.md5 != md5 and not found.error:
            told = f"differs: MD5 {found.md5[:8]}, {LOCK} has {md5[:8]}"
            yield Fault(name, told + _tell_cached(md5, project.root / entry.path / name, project))


def _tell_cached(md5: str, place: Path | None, project: Project) -> str:
    """How DVC's cache has a file that is damaged or gone."""
    cached = project.cached(md5)
    if cached is None:
        return "; DVC's cache has it not"
    if place is not None and cached.samefile(place):
        return "; DVC's cache has the same bytes, by a hard link: `dvc checkout` would not help"
    if project.read_all([cached], "read DVC's cache")[cached].md5 != md5:
        return "; DVC's cache has it damaged too: `dvc checkout` would not help"
    return "; DVC's cache has it sound"


def _verify_run(folder: Path, contents: Mapping[Path, Content]) -> Artefact:
    """A run's checkpoints beside their seals, and its identity beside its name."""
    path = f"runs/{folder.name}"
    faults, commands = [], []
    for seal in sorted(folder.glob("checkpoints/step-*.json")):
        tensors = seal.with_suffix(".safetensors")
        if complaint := check_checkpoint(seal, contents.get(tensors)):
            faults.append(Fault(f"checkpoints/{tensors.name}", complaint))
            commands.append(f"rm {shlex.quote(f'{path}/checkpoints/{seal.stem}')}.*")
    for mismatch in check_identity(folder.parents[1], folder.name):
        faults.append(Fault("identity.json", mismatch.text))
        commands = [mismatch.remedy]
    files = [content for place, content in contents.items() if place.is_relative_to(folder)]
    size = sum(content.bytes for content in files)
    state, remedy = (DAMAGED, " && ".join(commands)) if faults else (OK, None)
    return Artefact(path, "train", state, len(files), size, tuple(faults), remedy)


def _verify_cache(
    project: Project, outputs: Mapping[str, tuple[str, Entry | None]], artefacts: Iterable[Artefact]
) -> Artefact:
    """DVC's copies of what is recorded beside their names, and what puts them there anew from a sound working tree."""
    users: dict[str, str] = {}
    for path, (_, entry) in outputs.items():
        if entry is not None:
            users |= dict.fromkeys((project.list_recorded(entry) or {}).values(), path)
            users[entry.md5] = path
    places, damaged = project.find_damaged(users)
    size = sum(place.stat().st_size for place in places.values())
    name = "DVC's cache"
    if not damaged:
        return Artefact(name, None, OK, len(places), size)
    faults = tuple(
        Fault(show_object(project, md5), f"is damaged, and `dvc checkout {users[md5]}` would bring that")
        for md5 in damaged
    )
    sound = {artefact.path for artefact in artefacts if artefact.state == OK}
    stages = dict.fromkeys(outputs[users[md5]][0] for md5 in damaged if users[md5] in sound)
    remedy = f"rm -f {' '.join(fault.file for fault in faults)}"
    remedy += f" && dvc commit {' '.join(stages)}" if stages else ""
    return Artefact(name, None, DAMAGED, len(places), size, faults, remedy)
