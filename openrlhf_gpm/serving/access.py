"""Who may call: the API keys, and which addresses a server listens on without any. Standard library only."""

import base64
import binascii
import hashlib
import hmac
import ipaddress
from pathlib import Path

SHORTEST = 16
"""Characters of a key."""


def read_keys(path: Path) -> list[str]:
    """The API keys of a file, one per line; more than one, so that keys can be changed without a stop.

    Raises ValueError, which names the flag, for a file without a key or with one that can be guessed.
    """
    if not path.is_file():
        raise ValueError(f"--api-key-file {path} is not a file: write one key per line into it")
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except UnicodeDecodeError:
        raise ValueError(f"--api-key-file {path}: a key is ASCII text, because it travels in a header") from None
    keys = [line.strip() for line in lines if line.strip()]
    if not keys:
        raise ValueError(f"--api-key-file {path} holds no key: write one per line, `openssl rand -hex 32` makes one")
    if len(shortest := min(keys, key=len)) < SHORTEST:
        raise ValueError(
            f"--api-key-file {path}: a key of {len(shortest)} characters can be guessed, give {SHORTEST} or more"
        )
    return keys


def check_host(host: str, has_keys: bool, no_auth: bool) -> str | None:
    """A warning to print, or None. Raises ValueError where other machines could call a server that asks for no key."""
    if has_keys and no_auth:
        raise ValueError("--no-auth and --api-key-file exclude each other: leave one of them out")
    if is_loopback(host) or has_keys:
        return None
    if not no_auth:
        raise ValueError(
            f"--host {host} can be reached from other machines: give --api-key-file, or --no-auth where everybody who "
            "reaches it may use it"
        )
    return f"--no-auth: everybody who reaches {host} can use this server"


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches that address. A name other than localhost may be anything."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_allowed(authorization: str | None, keys: list[str]) -> bool:
    """Whether the header `Authorization` holds one of the keys: as a bearer token, or as the password of basic access.

    Basic access is for clients that send nothing but a URL, http://any:KEY@host/, as OpenRLHF's does. All keys are
    compared, by digest, so that the time does not depend on which matched or how far.
    """
    scheme, _, value = (authorization or "").partition(" ")
    given = value.strip()
    if scheme.lower() == "basic":
        try:
            given = base64.b64decode(given, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return False
    elif scheme.lower() != "bearer":
        return False
    digest = _digest(given)
    return sum(hmac.compare_digest(digest, _digest(key)) for key in keys) > 0


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
