"""What .dvc/config tells everybody who has the repository about DVC's remotes, secrets included."""

from configparser import ConfigParser, Error
from pathlib import Path
from urllib.parse import urlsplit

from lmcore.errors import ArtifactError

# Of those that DVC knows (dvc/config_schema.py); names of users and of keys are none.
SECRETS = {
    "account_key",
    "client_secret",
    "connection_string",
    "gdrive_client_secret",
    "oss_key_secret",
    "passphrase",
    "password",
    "sas_token",
    "secret_access_key",
    "session_token",
    "sse_customer_key",
    "token",
}


def find_secrets(config: Path) -> list[tuple[str, str]]:
    """The remotes and their settings that hold a secret, `("storage", "password")`; `url` where it is in the address.

    Raises ArtifactError for a file that DVC cannot read.
    """
    parser = ConfigParser(interpolation=None, strict=False)
    try:
        parser.read(config, encoding="utf-8")
    except (Error, UnicodeDecodeError) as error:
        raise ArtifactError(f"{config.name} is damaged: {error}".splitlines()[0]) from error
    found = []
    for section in parser.sections():
        kind, _, name = section.strip("'").partition(" ")
        if kind == "remote":
            for key, value in parser[section].items():
                if key in SECRETS or (key == "url" and urlsplit(value).password):
                    found.append((name.strip('"'), key))
    return found
