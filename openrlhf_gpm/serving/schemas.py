"""What the OpenAPI document says of bodies and answers, with examples. The checks themselves are in `bodies.py`."""

from typing import Any

MESSAGES = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": {"type": "string"}, "content": {"type": "string"}},
    },
}
PROMPT = {"oneOf": [{"type": "string"}, MESSAGES], "description": "A text, or the messages up to the response."}
NUMBERS = {"type": "array", "items": {"type": "number"}}
MATRIX = {"type": "array", "items": NUMBERS}
TEXTS = {"type": "array", "minItems": 1, "items": {"type": "string"}}

GROUPS = {
    "type": "object",
    "required": ["groups"],
    "properties": {
        "groups": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["prompt", "responses"],
                "properties": {
                    "id": {"description": "Any JSON; default: the group's index, as a text."},
                    "prompt": PROMPT,
                    "system": {
                        "oneOf": [{"type": "string"}, {"type": "null"}],
                        "description": "Put in front of the prompt as a system message.",
                    },
                    "responses": TEXTS,
                },
            },
        }
    },
}
GROUPS_EXAMPLE = {"groups": [{"id": "q1", "prompt": "Name a prime.", "responses": ["7", "9", "Two."]}]}

QUERIES = {
    "type": "object",
    "required": ["query", "prompts"],
    "properties": {
        "query": TEXTS | {"description": "Prompt and response as one text, as the policy read and wrote them."},
        "prompts": TEXTS | {"description": "What each query begins with."},
        "labels": {"type": "array", "description": "With prompt_from=labels: the prompts that the GPM gets."},
    },
}
QUERIES_EXAMPLE = {"query": ["Name a prime. 7"], "prompts": ["Name a prime. "], "labels": [""]}

_EMBEDDED = {
    "id": {},
    "embeddings": MATRIX | {"type": ["array", "null"]},
    "gate": NUMBERS | {"type": ["array", "null"]},
}
_WARNINGS = {"warnings": {"type": "array", "items": {"type": "string"}, "description": "Only where there are any."}}
_SCORED = _EMBEDDED | {
    "scores": MATRIX,
    "probs": MATRIX,
    "mean_scores": NUMBERS,
    "win_rates": NUMBERS,
    "ranking": {"type": "array", "items": {"type": "integer"}},
    "von_neumann": NUMBERS,
    "cyclic_share": {"type": "number"},
}
ERROR = {
    "type": "object",
    "properties": {
        "error": {"type": "string", "description": "What is wrong, and what to do."},
        "field": {"type": "string", "description": 'Where, such as "groups[0].responses"; "" where it is no field.'},
    },
}
REASONS = {
    400: "The body is not JSON.",
    401: "No key, or a wrong one.",
    413: "More than this server takes; the field is named.",
    415: "The body is not application/json.",
    422: "A field is wrong; it is named.",
    500: "The model failed.",
    503: "The model is not there yet, the queue is full, or the server stops; `Retry-After`: seconds to wait.",
}
EXPIRED = {504: "The other responses of the prompt did not come before the deadline."}


def results(scored: bool) -> dict[str, Any]:
    """The schema of what /score answers, or of /embed."""
    item = {"type": "object", "properties": (_SCORED if scored else _EMBEDDED) | _WARNINGS}
    return {"type": "object", "properties": {"results": {"type": "array", "items": item}}}


REWARDS = {
    "type": "object",
    "properties": {
        "rewards": NUMBERS,
        "scores": NUMBERS,
        "extra_logs": {"type": "object", "additionalProperties": NUMBERS},
    },
}


def described(body: dict[str, Any], example: Any, answer: dict[str, Any], reasons: dict[int, str]) -> dict[str, Any]:
    """Arguments of a route that document its body, its answer and its refusals."""
    content = {"application/json": {"schema": body, "example": example}}
    refusals = {
        status: {"description": text, "content": {"application/json": {"schema": ERROR}}}
        for status, text in reasons.items()
    }
    return {
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
        "responses": {200: {"description": "OK", "content": {"application/json": {"schema": answer}}}, **refusals},
    }
