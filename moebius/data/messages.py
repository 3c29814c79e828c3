"""The messages of other libraries' errors, shortened and without secrets, for use in ours."""

import re

LONGEST_MESSAGE = 200
"""Number of characters after which a message is cut."""


def one_line(error: BaseException) -> str:
    """Return an error's message as one short line without secrets.

    What may be secret in a URL is removed: the user name and password, and the query.
    """
    message = " ".join(str(error).split())
    without_query = re.sub(r"(\w://[^\s?'\"]*)\?[^\s'\"]*", r"\1", message)
    return re.sub(r"(\w://)[^\s/@'\"]*@", r"\1", without_query)[:LONGEST_MESSAGE]
