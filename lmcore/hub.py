"""Models by name: a folder of this machine or, where it has none so called, a repository on the Hugging Face hub."""

import re
from pathlib import Path
from typing import NamedTuple

from lmcore.errors import ArtifactError, LmcoreError, ParameterError
from lmcore.files import named_path

REPOSITORY = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(@(?P<revision>\w[\w./-]*))?", re.ASCII)
TOKENIZER_FILES = ["tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"]
MODEL_FILES = ["config.json", "model.safetensors", "model-*.safetensors", "model.safetensors.index.json"]


class ModelPlace(NamedTuple):
    """Where a model lies; `origin` is the repository and the commit that it was fetched from, empty for a folder."""

    folder: Path
    origin: dict[str, str]


def find_model(name: str, key: str | None, *, weights: bool = True) -> ModelPlace:
    """The folder `name`, from the checkout's root, or that repository's (`openai-community/gpt2`, `NAME@REVISION`).

    A repository is fetched into huggingface_hub's own cache, its tokenizer alone without `weights`, and found there
    without a network. `key` is the parameter that `name` is from, for messages. Raises ParameterError where there is
    neither, ArtifactError for one that cannot be had, LmcoreError without huggingface_hub.
    """
    folder = named_path(name)
    if folder.is_dir():
        return ModelPlace(folder, {})
    asked, told = REPOSITORY.fullmatch(name), f"{key}={name}" if key else name
    if asked is None:
        raise ParameterError(
            f"{told}: {folder} is not a folder; it begins at dvc.yaml's, or is a name on the Hugging Face hub as "
            f"openai-community/gpt2 or OWNER/NAME@REVISION"
        )
    files = [*TOKENIZER_FILES, *(MODEL_FILES if weights else [])]
    repository, revision = asked["repository"], asked["revision"] or "main"
    beginning = f"{told}: {folder} is not a folder, and "
    fetched = _fetch(repository, revision, files, beginning)
    if weights and not ((fetched / "config.json").exists() and any(fetched.glob("model*.safetensors"))):
        raise ArtifactError(
            f"{beginning}{repository}@{revision} came without config.json or model.safetensors: it has none, or its "
            f"tokenizer alone is in the cache and the hub does not answer: connect once"
        )
    return ModelPlace(fetched, {"repository": repository, "commit": fetched.name})


def _fetch(repository: str, revision: str, files: list[str], beginning: str) -> Path:
    """The snapshot of a commit in huggingface_hub's cache, which has the commit for its name."""
    try:
        import huggingface_hub
        from huggingface_hub import errors
    except ImportError:
        raise LmcoreError(f"{beginning}names on the hub need huggingface_hub: pip install -e '.[hf]'") from None
    # Of the HTTP library, whose name changes with versions; HfHubHTTPError is one.
    network_error: type[Exception] = errors.HfHubHTTPError.__mro__[1]
    try:
        return Path(huggingface_hub.snapshot_download(repository, revision=revision, allow_patterns=files))
    except errors.RevisionNotFoundError:
        reason = f"{repository} on the Hugging Face hub has no revision {revision}: check it"
    except errors.GatedRepoError:
        reason = f"{repository} on the Hugging Face hub is not open to all: ask for access there, then hf auth login"
    except errors.RepositoryNotFoundError:
        reason = f"the Hugging Face hub has no {repository} that you may see: check the name, or hf auth login"
    except errors.LocalEntryNotFoundError:
        reason = f"the Hugging Face hub does not answer, and its cache lacks {repository}@{revision}: connect once"
    except (errors.HFValidationError, network_error, OSError) as error:
        reason = f"the Hugging Face hub does not give {repository} ({' '.join(str(error).split())[:200]}): try again"
    raise ArtifactError(f"{beginning}{reason}")
