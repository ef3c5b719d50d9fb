"""How a server is set up: what the command line says, and the limits that keep one client from harming the others."""

import ipaddress
from dataclasses import dataclass

MOST_LOGPROBS = 20  # likeliest tokens that are told of each, OpenAI's limit of chat completions
MOST_FIGURES = 500_000  # log-probabilities of one request, some 150 bytes each until they are told
MOST_BODY_BYTES = 4 << 20
MOST_STOPS = 16
RECEIVE_SECONDS = 20.0  # within which a connection must have sent a whole request
KEEP_ALIVE_SECONDS = 30  # that a connection is kept for a next request
STALL_SECONDS = 60.0  # after which a client that takes nothing of what it is sent is hung up on
MOST_CONNECTIONS = 4096


@dataclass(frozen=True)
class Settings:
    """`name` is what clients call the model; `queue` counts the texts that may wait behind those in work."""

    name: str
    host: str = "127.0.0.1"
    port: int = 8000
    queue: int = 256
    max_tokens: int = 4096
    grace: float = 30.0
    api_key: str | None = None

    @property
    def is_local(self) -> bool:
        """Whether this machine alone reaches the server; `host` is an address then, or localhost."""
        return self.host == "localhost" or ipaddress.ip_address(self.host.partition("%")[0]).is_loopback
