"""TLS for those who connect: with which certificate, and of whom one is asked in return."""

from __future__ import annotations

import ssl

from mover.errors import UsageError


def server_context(certificate: str, key: str | None, client_ca: str | None) -> ssl.SSLContext:
    """From PEM files; without `key` it is in the same file as the certificate.

    With `client_ca` only clients are let in whose certificate it has signed. Raises `UsageError`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password=lambda: _refuse_password(key or certificate))
    except OSError as error:  # of which ssl.SSLError is one
        used = f"{certificate} and {key}" if key else certificate
        hint = "the key is expected in the same file; name it with --tls-key if it is not" if key is None else ""
        raise UsageError(f"cannot use {used} for TLS: {_reason(error)}", hint) from error
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(client_ca)
        except OSError as error:
            raise UsageError(f"cannot use {client_ca} to judge clients: {_reason(error)}") from error
    return context


def _refuse_password(key: str) -> str:
    """Without this OpenSSL would ask whoever is at the terminal."""
    raise UsageError(f"the key in {key} is encrypted", "`openssl pkey -in KEY -out PLAIN` takes the passphrase off")


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLError):
        return (error.reason or "not what a PEM file holds").replace("_", " ").lower()
    return error.strerror or str(error)
