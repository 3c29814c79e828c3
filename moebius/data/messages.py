"""Judge and shorten errors of other libraries and remove secrets, so that ours can quote them."""

import re
import socket
from collections.abc import Iterator

from moebius.config.printable import printable

LONGEST_MESSAGE = 200
"""Number of characters after which a message is cut off."""


UNREACHABLE = (ConnectionError, TimeoutError, socket.gaierror)
"""Errors of Python itself that mean that a machine could not be reached."""
UNREACHABLE_NAMES = (
    "ConnectError",
    "ConnectTimeout",
    "ConnectionTimeout",
    "ReadTimeout",
    "ClientConnectorError",
    "ClientConnectorDNSError",
    "ServerDisconnectedError",
    "ServerTimeoutError",
    "NewConnectionError",
    "NameResolutionError",
    "ConnectionError",
    "EndpointConnectionError",
    "ProxyError",
    "FSTimeoutError",
    "OfflineModeIsEnabled",
    "LocalEntryNotFoundError",
)
"""Names of errors with the same meaning in httpx, requests, aiohttp, urllib3, botocore, fsspec and
huggingface_hub, which need not be installed."""


def is_unreachable(error: BaseException) -> bool:
    """Return whether an error means that a machine could not be reached, or one of its causes."""
    return any(
        isinstance(cause, UNREACHABLE)
        or any(kind.__name__ in UNREACHABLE_NAMES for kind in type(cause).__mro__)
        for cause in _causes(error)
    )


def one_line(error: BaseException) -> str:
    """Return an error's message as one short line without secrets.

    The parts of a URL that may be secret are removed: the user name, the password and the query.
    """
    message = printable(" ".join(str(error).split()))
    without_query = re.sub(r"(\w://[^\s?'\"]*)\?[^\s'\"]*", r"\1", message)
    return re.sub(r"(\w://)[^\s/@'\"]*@", r"\1", without_query)[:LONGEST_MESSAGE]


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
