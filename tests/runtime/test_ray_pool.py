"""Work on text by a real Ray cluster of two nodes: the same bytes as here, also when one of them dies."""

import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from imports import ROOT

from lmcore.encode.encode import encode_splits
from lmcore.encode.params import EncodeParams
from lmcore.files import write_json
from lmcore.prepare.documents import DocumentPart, list_parts
from lmcore.prepare.params import PrepareParams
from lmcore.prepare.prepare import prepare
from lmcore.runtime.process_pool import HERE, Executor
from lmcore.tokenizer.byte import ByteTokenizer

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cluster")]

FILES = 12
WORDS = [f"word{number}" for number in range(60)]
DRIVER = """
import sys
from pathlib import Path
from test_ray_pool import run_stages
from lmcore.runtime import ray_pool as cluster
from lmcore.runtime.executor import open_executor
from lmcore.errors import report_errors
{change}
with report_errors(), open_executor() as executor:
    run_stages(Path("{name}"), executor)
"""


def run_stages(folder: Path, executor: Executor) -> None:
    """Prepare and encode of `raw` in the working folder; what they make lies in `folder`."""
    params = PrepareParams(
        text_field="text",
        separator=None,
        split="hash",
        validation_fraction=0.2,
        min_characters=1,
        max_characters=None,
        max_rejected_fraction=0.5,
        max_leakage=None,
        contamination=None,
        unicode="as_is",
        newlines="as_is",
        quality="none",
        near_duplicates=0.8,
    )
    metrics, _ = prepare(params, Path("raw"), folder / "documents", scratch=folder / "scratch", executor=executor)
    splits = {split: list_parts(folder / "documents" / split) for split in ("train", "validation")}
    tokens, scratch = folder / "tokens", folder / "scratch"
    encode_splits(
        EncodeParams(shard_tokens=5000, tokenized=None),
        splits,
        ByteTokenizer.create(),
        tokens,
        scratch=scratch,
        executor=executor,
    )
    write_json(folder / "metrics.json", metrics)


def encode_damaged(folder: Path, executor: Executor) -> None:
    params, parts = (
        EncodeParams(shard_tokens=5000, tokenized=None),
        {"train": [DocumentPart(folder / "part-0.parquet")]},
    )
    tokenizer, scratch = ByteTokenizer.create(), folder / "scratch"
    encode_splits(params, parts, tokenizer, folder / "tokens", scratch=scratch, executor=executor)


def read_tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Node:
    """A `ray start` with all that it starts."""

    def __init__(self, log: Path, *options: str) -> None:
        command = [Path(sys.executable).with_name("ray"), "start", "--num-cpus=1", "--object-store-memory=100000000"]
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, "--disable-usage-stats", "--block", *options], stdout=output, stderr=subprocess.STDOUT
            )
        wait_for(lambda: b"--block" in log.read_bytes() or self.process.poll() is not None)
        assert self.process.poll() is None, log.read_text()

    def find_tasks(self) -> list[psutil.Process]:
        """Its processes that work on an item right now."""
        return [child for child in self._children() if "run_in_folder" in " ".join(child.cmdline())]

    def _children(self) -> list[psutil.Process]:
        alive = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        return [child for child in alive if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]

    def kill(self) -> None:
        """As a machine that loses its power."""
        for process in [*self._children(), self.process]:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.wait()


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw text in several units, two of whose files are nearly the same, and what one process makes of it."""
    folder = tmp_path_factory.mktemp("cluster")
    (folder / "raw" / "files").mkdir(parents=True)
    for number in range(FILES):
        chance = random.Random(number % 9)  # some files say the same
        lines = [" ".join(f"word{chance.randrange(5000)}" for _ in range(40)) for _ in range(500)]
        texts = [json.dumps({"text": text}) for text in [*lines, " ".join(["nearly the same", *WORDS, str(number)])]]
        (folder / f"raw/files/{number:02}.jsonl").write_text("\n".join(texts))
    entries = [{"source": f"source{number // 2}", "path": f"{number:02}.jsonl"} for number in range(FILES)]
    write_json(folder / "raw" / "manifest.json", {"files": entries})
    (folder / "params.yaml").write_text("hardware: {workers: auto, data_engine: ray}\n")
    before = Path.cwd()
    os.chdir(folder)
    try:
        run_stages(Path("here"), HERE)
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Of the cluster's first node, which has one core."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own are too long for the names of sockets
        log = Path(folder, "log")
        node = Node(log, "--head", "--port=0", "--include-dashboard=false", f"--temp-dir={folder}")
        try:
            (found,) = set(re.findall("--address='(.+?)'", log.read_text()))
            yield found
        finally:
            node.kill()


@pytest.fixture
def second(address: str, tmp_path: Path) -> Iterator[Node]:
    """A second node of one core."""
    node = Node(tmp_path / "log", f"--address={address}")
    yield node
    node.kill()


class Driver:
    """The stages on the cluster, into the folder `name`, in a process where `change` was done first."""

    def __init__(self, project: Path, address: str, name: str, change: str = "") -> None:
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support"), str(Path(__file__).parent)])
        environment = {**os.environ, "RAY_ADDRESS": address, "PYTHONPATH": path}
        code = DRIVER.format(name=name, change=change)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=project, env=environment, stderr=subprocess.PIPE, text=True
        )

    def is_at_work_on(self, node: Node) -> bool:
        """Waits for it; False when all is done before."""
        wait_for(lambda: node.find_tasks() or self.process.poll() is not None)
        return self.process.poll() is None

    def finish(self) -> tuple[int, str]:
        """Its exit status and what it said on standard error."""
        try:
            _, error = self.process.communicate(timeout=240)
        except subprocess.TimeoutExpired:
            self.process.kill()
            _, error = self.process.communicate()
        return self.process.returncode, error


def test_two_nodes_make_the_same_bytes(project: Path, address: str, second: Node) -> None:
    driver = Driver(project, address, "two")
    was_shared = driver.is_at_work_on(second)
    assert driver.finish() == (0, "")
    assert was_shared
    assert read_tree(project / "two") == read_tree(project / "here")
    metrics = json.loads((project / "here/metrics.json").read_text())
    assert metrics["duplicates"] > metrics["near_duplicates"] > 0


def test_a_node_that_dies_is_made_up_for(project: Path, address: str, second: Node) -> None:
    driver = Driver(project, address, "killed")
    was_shared = driver.is_at_work_on(second)
    second.kill()
    assert driver.finish() == (0, "")
    assert was_shared
    assert read_tree(project / "killed") == read_tree(project / "here")


def test_a_refusal_on_a_node_is_one_line_here(project: Path, address: str) -> None:
    (project / "bad").mkdir()
    (project / "bad/part-0.parquet").write_bytes(b"nothing")
    status, error = Driver(project, address, "bad", "from test_ray_pool import encode_damaged as run_stages").finish()
    assert re.fullmatch(r"error: bad/part-0\.parquet is damaged \(.*\): run the prepare stage .*\n", error)
    assert status == 1


def test_nodes_must_hold_the_same_code(project: Path, address: str) -> None:
    status, error = Driver(project, address, "other", "cluster.fingerprint_code = lambda: 'other'").finish()
    assert re.fullmatch(r"error: hardware\.data_engine=ray: \S+ does not see /\S+ as it is here, .*\n", error)
    assert status == 1
    assert not list(project.glob(".probe*"))


def test_without_a_cluster_there_is_one_line(project: Path) -> None:
    status, error = Driver(project, "127.0.0.1:1", "none").finish()
    assert re.fullmatch(r"error: hardware\.data_engine=ray: no Ray cluster at 127\.0\.0\.1:1: start it .*\n", error)
    assert status == 1
