"""How much one request may ask for, and how a request is refused. Standard library only: `--help` reads the defaults.

What a user sent is quoted in answers to that user, never in the log: the log has the status and the field.
"""

from dataclasses import dataclass, fields

from openrlhf_gpm.flags import flag


class Refused(Exception):
    """A request that is not answered with numbers.

    Args:
        status: of HTTP.
        field: of the body or the query, such as "groups[3].responses[1]"; "" where no field is at fault.
        text: what is wrong and what to do.
        retry_after: seconds after which the same request may succeed.
    """

    def __init__(self, status: int, field: str, text: str, retry_after: int | None = None) -> None:
        super().__init__(f"{field}: {text}" if field else text)
        self.status = status
        self.field = field
        self.retry_after = retry_after


REWARDS = ("score", "win_rate")
PROMPT_FROM = ("prompts", "labels")
INCOMPLETE = ("refuse", "score")


@dataclass(frozen=True)
class Limits:
    """What a server takes. Raises ValueError that names the flag."""

    max_body_mb: int = flag(16, "MiB of one request's body")
    max_bodies_mb: int = flag(1024, "MiB of the bodies of all requests that are not answered yet")
    max_groups: int = flag(256, "groups, or queries of /get_reward, in one request")
    max_responses: int = flag(64, "responses in one group; K responses have K * K scores")
    max_tokens: int = flag(262144, "tokens in one request, each prompt counted with every response")
    max_queue_tokens: int = flag(1048576, "tokens of all groups that wait for the model")
    max_waiting: int = flag(16384, "responses of /get_reward that wait for the others of their prompt")

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if value < 1:
                raise ValueError(f"--{item.name} must be >= 1, got {value}")
        if self.max_queue_tokens < self.max_tokens:
            raise ValueError(
                f"--max_queue_tokens {self.max_queue_tokens} is less than --max_tokens {self.max_tokens}, and the "
                "largest request would never fit: raise the one or lower the other"
            )
        if self.max_bodies_mb < self.max_body_mb:
            raise ValueError(
                f"--max_bodies_mb {self.max_bodies_mb} is less than --max_body_mb {self.max_body_mb}: raise the one "
                "or lower the other"
            )
        if self.max_responses < 2:
            raise ValueError("--max_responses 1 leaves nothing to compare: give 2 or more")

    def check_count(self, field: str, count: int, limit: str, what: str) -> None:
        """Raise Refused, 413, where `count` is above the limit of that name. what: plural, what is counted."""
        allowed = getattr(self, limit)
        if count > allowed:
            raise Refused(413, field, f"{count} {what}, this server takes {allowed} (--{limit}): send fewer")


def check_rewards(group_size: int | None, deadline: float, limits: Limits) -> None:
    """Raise ValueError, which names the flag, for a group or a wait that cannot be."""
    if group_size is not None and not 2 <= group_size <= limits.max_responses:
        raise ValueError(f"--group_size must be 2 to {limits.max_responses} (--max_responses), got {group_size}")
    if not 0 < deadline < float("inf"):
        raise ValueError(f"--deadline must be a number of seconds > 0, got {deadline}")
