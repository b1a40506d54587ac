"""Tell a URL how a run ended."""

from __future__ import annotations

import aiohttp
import msgspec

from mover.report.summary import RunSummary

_TIMEOUT = 10.0


async def post(summary: RunSummary, url: str, timeout: float = _TIMEOUT) -> str | None:
    """POST the summary as JSON within `timeout` seconds. Returns what went wrong, if anything.

    A failed call never fails a backup.
    """
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout)) as client,
            client.post(
                url, data=msgspec.json.encode(summary), headers={"Content-Type": "application/json"}
            ) as response,
        ):
            return None if response.ok else f"it answered with status {response.status}"
    except (aiohttp.ClientError, TimeoutError) as error:
        return str(error) or type(error).__name__
