"""What a server's refusals and failures mean: the words of `obstore` in, a decision and a sentence out.

`obstore` tells apart what is missing, what exists and what is forbidden; everything else is in its text: the HTTP
status ("status code: 503") and the body, S3's XML with a Code and a Message.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from obstore.exceptions import BaseError

# What any call of obstore raises: its own errors, and for an object that is missing FileNotFoundError.
FAILURES = (BaseError, OSError, ValueError)

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z0-9.]{1,60})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,300})</Message>")
_CAUSE = re.compile(r"(?:HTTP error: |Error performing [^\n]*? - )([^\n]{1,200})")
_KIND = re.compile(r"kind: (Connect|Timeout|Request|Decode|Body|Interrupted)")

# Where obstore asks for credentials when nobody gave it any: the instance's and the container's metadata.
_METADATA = re.compile(r"/latest/api/token|/latest/meta-data|169\.254\.170\.2|fetching \w+ credentials", re.I)
_NO_CREDENTIALS = "NoCredentials"
_CERTIFICATE = re.compile(r"InvalidCertificate\(\s*(\w+)")
_UNTRUSTED = "UntrustedCertificate"
_WORTH_ANOTHER_TRY = {408, 409, 425, 429}
_NO_ROOM = {"InsufficientStorage", "QuotaExceeded", "XMinioStorageFull", "EntityTooLarge", "StorageFull"}
_CREDENTIALS = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "AccessDenied"}
_CLOCK = {"RequestTimeTooSkewed"}
_BUCKET = {"NoSuchBucket", "InvalidBucketName"}


class Answer(NamedTuple):
    """A failure: HTTP status (0: none, the connection failed), S3's code, and what was said, in one line."""

    status: int
    code: str
    text: str

    @property
    def passing(self) -> bool:
        """Whether the same request may go well later. Then it is also not known whether this one had an effect."""
        if self.no_room or self.code in (_NO_CREDENTIALS, _UNTRUSTED):
            return False
        return (self.status in (0, *range(500, 600)) and self.status != 501) or self.status in _WORTH_ANOTHER_TRY

    @property
    def no_room(self) -> bool:
        """Whether the server takes no more."""
        return self.code in _NO_ROOM or self.status == 507

    @property
    def no_bucket(self) -> bool:
        """Whether there is no such bucket."""
        return self.code in _BUCKET

    @property
    def past_the_end(self) -> bool:
        """Whether a range began at or after the object's end."""
        return self.status == 416

    @property
    def hint(self) -> str:
        """What to do about it."""
        if self.no_bucket:
            return "make the bucket first, or correct its name; mover makes no buckets"
        if self.code in _CLOCK:
            return "set this machine's clock"
        if self.code in _CREDENTIALS or self.status in (401, 403):
            return "check access key, secret and what they are allowed: to read, write, list and delete in this bucket"
        if self.no_room:
            return "make room there; what is stored is intact, and the next run goes on with what this one had written"
        if self.code == _NO_CREDENTIALS:
            return (
                "give access-key-id and a secret in [store], AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a profile"
            )
        if self.code == _UNTRUSTED:
            return (
                "if it is the server's own, name the authority that vouches for it: ca-file in [store], AWS_CA_BUNDLE"
            )
        return "check the endpoint and the network; run it again later" if self.status == 0 else ""


def understand(error: Exception) -> Answer:
    """Take an exception of obstore apart."""
    text = str(error)
    if _METADATA.search(text):
        return Answer(0, _NO_CREDENTIALS, "no keys are given, and this machine has no role that gives them")
    if untrusted := _CERTIFICATE.search(text):
        return Answer(0, _UNTRUSTED, f"its certificate is not trusted ({untrusted[1]})")
    status = _STATUS.search(text)
    code = _CODE.search(text)
    if status is None and isinstance(error, FileNotFoundError):
        return Answer(404, "", "not found")
    if status is None and isinstance(error, ValueError):
        return Answer(400, "", _first_line(text))
    message = _MESSAGE.search(text)
    if message is not None:
        said = message[1].strip()
    elif status is not None:
        said = f"the server answers {status[1]}"
    else:
        said = _cause(text)
    return Answer(int(status[1]) if status else 0, code[1] if code else "", said)


def _cause(text: str) -> str:
    """The connection's failure in a few words."""
    kind = _KIND.search(text)
    if kind is not None and kind[1] == "Connect":
        return "it cannot be connected to"
    if kind is not None and kind[1] == "Timeout":
        return "it does not answer in time"
    cause = _CAUSE.search(text)
    return cause[1].strip() if cause else _first_line(text)


def _first_line(text: str) -> str:
    return text.split("\n", 1)[0][:200]
