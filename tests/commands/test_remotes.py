"""Secrets of remotes in .dvc/config, put there by DVC itself."""

from pathlib import Path

from dvc.config_schema import REMOTE_SCHEMAS  # type: ignore[import-untyped]
from projects import dvc

from lmcore.commands.doctor import SECRETS, check_secrets


def told(folder: Path) -> list[str]:
    return [finding.text for finding in check_secrets(folder)]


def test_secrets_are_told_from_names_and_from_what_stays_here(tmp_path: Path) -> None:
    assert told(tmp_path) == []
    for arguments in (
        ("init", "--no-scm", "--quiet"),
        ("remote", "add", "storage", "ssh://somebody@host/place"),
        ("remote", "modify", "storage", "user", "somebody"),
        ("remote", "modify", "--local", "storage", "password", "where-it-belongs"),
    ):
        dvc(tmp_path, *arguments)
    assert told(tmp_path) == []
    dvc(tmp_path, "remote", "modify", "storage", "password", "a%b # long")
    dvc(tmp_path, "remote", "add", "other", "https://somebody:known@host/place")
    text = ".dvc/config, which git has, holds a secret of the remote "
    assert told(tmp_path) == [f"{text}storage: password", f"{text}other: url"]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text("[core\n")
    (finding,) = check_secrets(tmp_path)
    assert finding.text.startswith(".dvc/config is damaged: ")
    assert finding.remedy == "git checkout .dvc/config"


def test_the_settings_are_those_of_dvc() -> None:
    known = {str(key) for kind, keys in REMOTE_SCHEMAS.items() if kind != "remote" for key in keys}
    assert known >= SECRETS
    telling = ("password", "secret", "token", "passphrase", "connection_string", "account_key", "customer_key")
    named = {key for key in known if any(word in key for word in telling) and not key.startswith(("ask_", "exclude_"))}
    assert named - SECRETS == {"bearer_token_command"}  # what gives a token is none
