"""Metrics of a server for Prometheus: requests, tokens, the queue, and latencies."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
RATES = (1, 3, 10, 30, 100, 300, 1000, 3000, 10000)


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("lmcore_requests", "Responses", ["path", "status"], registry=registry)
        self.request_seconds = Histogram(
            "lmcore_request_seconds",
            "From a request's headers to the end of its response",
            ["path"],
            registry=registry,
            buckets=SECONDS,
        )
        self.prompt_tokens = Counter("lmcore_prompt_tokens", "Tokens of prompts", registry=registry)
        self.generated_tokens = Counter("lmcore_generated_tokens", "Tokens decoded", registry=registry)
        self.waiting = Gauge("lmcore_waiting_texts", "Texts in the queue", registry=registry)
        self.running = Gauge("lmcore_running_texts", "Active texts", registry=registry)
        self.rows = Gauge("lmcore_rows", "The largest batch", registry=registry)
        self.connections = Gauge("lmcore_connections", "Open connections", registry=registry)
        self.first_token_seconds = Histogram(
            "lmcore_time_to_first_token_seconds",
            "From asking to a text's first token",
            registry=registry,
            buckets=SECONDS,
        )
        self.text_rate = Histogram(
            "lmcore_text_tokens_per_second", "Of each finished text, queue included", registry=registry, buckets=RATES
        )

    def render(self) -> bytes:
        """Return the metrics in Prometheus's text format."""
        return generate_latest(self.registry)
