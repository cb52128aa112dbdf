"""What a server counts, in Prometheus' form. Every server has a registry of its own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180)
FILL = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.5, 2.0)


class Metrics:
    """Counters, gauges and histograms; `text` is what /metrics answers."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("gpm_requests", "Requests, by status.", ["endpoint", "status"], registry=registry)
        self.seconds = Histogram(
            "gpm_request_seconds",
            "Time to answer; of /get_reward with the wait for the other responses.",
            ["endpoint"],
            buckets=SECONDS,
            registry=registry,
        )
        self.groups = Counter("gpm_groups", "Groups that the model answered.", registry=registry)
        self.tokens = Counter("gpm_tokens", "Their tokens, prompts counted per response.", registry=registry)
        self.shared = Counter(
            "gpm_shared_tokens", "Those of gpm_tokens that sharing prompts spared the model.", registry=registry
        )
        self.fill = Histogram(
            "gpm_batch_fill",
            "Tokens that a call of the scorer computed, relative to --batch_tokens; above 1: several passes.",
            buckets=FILL,
            registry=registry,
        )
        self.failures = Counter("gpm_failures", "Groups for which the model failed.", registry=registry)
        self.queue = Gauge("gpm_queue_tokens", "Tokens of the groups that wait for the model.", registry=registry)
        self.waiting = Gauge(
            "gpm_waiting_responses",
            "Responses of /get_reward that wait for others of their prompt.",
            registry=registry,
        )
        self.members = Counter(
            "gpm_get_reward_responses",
            "Responses of /get_reward by what became of them (docs/serving.md).",
            ["outcome"],
            registry=registry,
        )
        self.ready = Gauge("gpm_ready", "1 if the model answers.", registry=registry)

    def text(self) -> bytes:
        """All of them, for a scraper."""
        return generate_latest(self.registry)
