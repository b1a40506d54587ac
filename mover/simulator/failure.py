"""An error of the pool's API: a code of its data model and its parameters, all text."""

from __future__ import annotations


class Failure(Exception):
    """What a call answers instead of a value. `code` is XAPI's own spelling (ocaml/xapi-consts/api_errors.ml)."""

    def __init__(self, code: str, *params: str) -> None:
        super().__init__(code, *params)
        self.code = code
        self.params = params

    @property
    def description(self) -> list[str]:
        """The code followed by its parameters: `ErrorDescription`, `error_info`."""
        return [self.code, *self.params]

    def text(self) -> str:
        """How XAPI writes an error into an HTML page: `CODE: [ p1; p2; ]` (http-lib/http_svr.ml)."""
        return f"{self.code}: [ {' '.join(f'{param};' for param in self.params)} ]"


def internal(message: str) -> Failure:
    """An exception nobody caught, on the server."""
    return Failure("INTERNAL_ERROR", message)


def storage_failure(code: int, message: str) -> Failure:
    """An error of a storage driver: three parameters, the text in the middle (sm libs/sm/xs_errors.py)."""
    return Failure(f"SR_BACKEND_FAILURE_{code}", "", message, "")
