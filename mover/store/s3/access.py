"""Where a bucket is and who asks: settings first, then the environment, then the files of the AWS tools.

`obstore` itself knows the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN, AWS_REGION,
AWS_ENDPOINT_URL, AWS_ENDPOINT_URL_S3) and, without any keys, web identities, container and instance roles. The files
in between, `~/.aws/credentials` and `~/.aws/config`, are read here.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from obstore.store import S3Store

from mover.errors import SecretError, UsageError
from protocol.secret import Secret

if TYPE_CHECKING:
    from obstore.store import ClientConfig, S3Config

# Seconds. A request is at most 16 MiB, or a part of that size: slower than 100 KB/s is as good as gone.
_CONNECT = 10
_REQUEST = 180
_RETRY_FOR = 120.0
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


@dataclass(frozen=True)
class S3Access:
    """How to reach a bucket; None: as the environment, the AWS files or the machine's role say.

    `ca` is PEM text of authorities to trust besides the system's. `retry_for` is how many seconds a request that fails
    for a passing reason is tried again.
    """

    endpoint: str | None = None
    region: str | None = None
    access_key_id: str | None = None
    secret_access_key: Secret | None = None
    ca: bytes | None = None
    retry_for: float = _RETRY_FOR


def split_url(url: str) -> tuple[str, str]:
    """Bucket and prefix of `s3://bucket/prefix`. Raises `UsageError`."""
    parts = urlsplit(url)
    prefix = parts.path.strip("/")
    if not parts.netloc or "@" in parts.netloc or ":" in parts.netloc or parts.query or parts.fragment:
        raise UsageError(f"{url} is not of the form s3://bucket/prefix")
    if any(part in ("", ".", "..") for part in prefix.split("/")) and prefix:
        raise UsageError(f"{url} has a prefix with empty parts or dots")
    return parts.netloc, prefix


def connect(bucket: str, prefix: str, access: S3Access, environment: Mapping[str, str]) -> tuple[S3Store, str]:
    """The client, and the endpoint's name for messages. No request is made. Raises `UsageError`, `SecretError`."""
    profile = _profile(environment)
    endpoint = access.endpoint or _first(environment, *_ENDPOINTS) or profile.get("endpoint_url")
    region = access.region or _first(environment, "AWS_REGION", "AWS_DEFAULT_REGION") or profile.get("region")
    config: S3Config = {"region": region or "us-east-1", "disable_bulk_delete": True}
    if endpoint is not None:
        if urlsplit(endpoint).scheme not in ("http", "https") or not urlsplit(endpoint).hostname:
            raise UsageError(f'the endpoint is a URL, as in "https://s3.example.org", not {endpoint}')
        config["endpoint"] = endpoint.rstrip("/")
    _add_keys(config, access, profile, environment)
    options: ClientConfig = {
        "allow_http": endpoint is not None and endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=_CONNECT),
        "timeout": timedelta(seconds=_REQUEST),
    }
    if (ca := access.ca or _authorities(environment.get("AWS_CA_BUNDLE") or profile.get("ca_bundle"))) is not None:
        options["root_certificate"] = ca
    try:
        client = S3Store(
            bucket,
            prefix=prefix or None,
            config=config,
            client_options=options,
            # Trying again is our own business: whether a put had an effect has to be found out first.
            retry_config={"max_retries": 0, "retry_timeout": timedelta(seconds=_REQUEST)},
        )
    except Exception as error:
        raise UsageError(f"s3://{bucket}/{prefix}: {str(error).splitlines()[0]}") from error
    return client, endpoint or f"AWS, region {config['region']}"


def _authorities(path: str | None) -> bytes | None:
    """PEM text of the authorities in a file. Raises `SecretError`."""
    try:
        return Path(path).expanduser().read_bytes() if path else None
    except OSError as error:
        raise SecretError(f"AWS_CA_BUNDLE or ca_bundle names {path}, which cannot be read: {error.strerror}") from error


def _add_keys(config: S3Config, access: S3Access, profile: Mapping[str, str], environment: Mapping[str, str]) -> None:
    if access.access_key_id is not None or access.secret_access_key is not None:
        if access.access_key_id is None or access.secret_access_key is None:
            raise SecretError("access-key-id and the secret access key go together; one of them is missing")
        config["access_key_id"] = access.access_key_id
        config["secret_access_key"] = access.secret_access_key.reveal()
    elif not environment.get("AWS_ACCESS_KEY_ID") and "aws_access_key_id" in profile:
        config["access_key_id"] = profile["aws_access_key_id"]
        config["secret_access_key"] = profile.get("aws_secret_access_key", "")
        if token := profile.get("aws_session_token"):
            config["session_token"] = token


def _profile(environment: Mapping[str, str]) -> dict[str, str]:
    """What the files of the AWS tools say about the profile in use. Raises `SecretError` if a named one is nowhere."""
    name = environment.get("AWS_PROFILE") or "default"
    found: dict[str, str] = {}
    for variable, file, section in (
        ("AWS_CONFIG_FILE", "config", name if name == "default" else f"profile {name}"),
        ("AWS_SHARED_CREDENTIALS_FILE", "credentials", name),
    ):
        home = environment.get("HOME")
        path = environment.get(variable, f"{home}/.aws/{file}" if home else "")
        parser = configparser.ConfigParser(interpolation=None)
        try:
            if path:
                parser.read_string(Path(path).read_text())
        except FileNotFoundError:
            continue
        except (OSError, UnicodeDecodeError, configparser.Error) as error:
            raise SecretError(f"cannot read {path}: {str(error).splitlines()[0]}") from error
        if parser.has_section(section):
            found.update(parser.items(section))
    if not found and environment.get("AWS_PROFILE"):
        raise SecretError(f"AWS_PROFILE names the profile {name}, which neither ~/.aws/config nor credentials has")
    return found


def _first(environment: Mapping[str, str], *names: str) -> str | None:
    return next((environment[name] for name in names if environment.get(name)), None)


def environment() -> Mapping[str, str]:
    """This process's."""
    return os.environ
