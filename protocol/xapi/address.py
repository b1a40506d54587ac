"""Where a host of a pool is reached: scheme, host and port, without credentials or query."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class Address:
    """One host's API. `host` is a name or an IP address without brackets; `port` is always set."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read a pool's URL: `https://host[:port]`, or `http://` where the user says so. A bare host means https.

        Raises ValueError for another scheme, a path, a query, or credentials in the URL.
        """
        parts = urlsplit(url if "://" in url else f"https://{_bracketed(url)}")
        if parts.scheme not in ("https", "http"):
            raise ValueError(f"a pool is reached by https:// or http://, not {parts.scheme}://")
        if parts.username is not None or parts.password is not None:
            raise ValueError("a pool's URL holds no user name or password")
        if parts.path not in ("", "/") or parts.query or parts.fragment:
            raise ValueError("a pool's URL has no path and no query")
        if not parts.hostname:
            raise ValueError("a pool's URL names a host")
        return cls(parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80))

    def sibling(self, text: str) -> Address:
        """Return the address of another host of this pool, as the pool names it: a name, `host:port`, or an IP.

        The pool gives bare addresses, IPv6 without brackets; the port is then the one in use here. Raises ValueError.
        """
        parts = urlsplit(f"//{_bracketed(text)}")
        if not parts.hostname or parts.username is not None or parts.path or parts.query:
            raise ValueError(f"not a host's address: {text[:100]!r}")
        return replace(self, host=parts.hostname, port=parts.port or self.port)

    @property
    def url(self) -> str:
        """The root URL, where XML-RPC is served."""
        return f"{self.scheme}://{self.netloc}/"

    @property
    def netloc(self) -> str:
        """`host:port`, with brackets around an IPv6 address."""
        return f"{_bracketed(self.host)}:{self.port}"

    @property
    def secure(self) -> bool:
        """Whether TLS is spoken here."""
        return self.scheme == "https"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}"


def _bracketed(host: str) -> str:
    try:
        return f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    except ValueError:
        return host
