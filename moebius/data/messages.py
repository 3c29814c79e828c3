"""Shorten error messages of other libraries and remove secrets, so that ours can quote them."""

import re

LONGEST_MESSAGE = 200
"""Number of characters after which a message is cut off."""


def one_line(error: BaseException) -> str:
    """Return an error's message as one short line without secrets.

    The parts of a URL that may be secret are removed: the user name, the password and the query.
    """
    message = " ".join(str(error).split())
    without_query = re.sub(r"(\w://[^\s?'\"]*)\?[^\s'\"]*", r"\1", message)
    return re.sub(r"(\w://)[^\s/@'\"]*@", r"\1", without_query)[:LONGEST_MESSAGE]
