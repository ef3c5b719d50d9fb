"""Parameters of a server, and the limits that keep one client from harming the others."""

import ipaddress
from dataclasses import dataclass

MAX_LOGPROBS = 20  # likeliest tokens returned for each, OpenAI's limit of chat completions
MAX_FIGURES = 500_000  # log-probabilities of one request, some 150 bytes each until they are sent
MAX_BODY_BYTES = 4 << 20
MAX_STOPS = 16
RECEIVE_SECONDS = 20.0  # within which a connection must have sent a whole request
KEEP_ALIVE_SECONDS = 30  # until an idle connection is closed
STALL_SECONDS = 60.0  # until a client that reads nothing of its response is disconnected
MAX_CONNECTIONS = 4096


@dataclass(frozen=True)
class ServerParams:
    """`name` is the model's name for clients; `queue` is how many sequences may wait behind the active ones."""

    name: str
    host: str = "127.0.0.1"
    port: int = 8000
    queue: int = 256
    max_tokens: int = 4096
    grace: float = 30.0
    api_key: str | None = None

    @property
    def is_local(self) -> bool:
        """True if this machine alone reaches the server; `host` is an address then, or localhost."""
        return self.host == "localhost" or ipaddress.ip_address(self.host.partition("%")[0]).is_loopback
