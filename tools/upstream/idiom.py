"""What upstream's files have, and ours do not."""

import ast

_LOGGER = "logging.getLogger(__name__)"


def with_logger(source):
    """Takes a module's logger from SpeechBrain: it logs on one rank alone.

    Arguments
    ---------
    source : str
        Python, whose imports are still to be sorted.

    Returns
    -------
    str
    """
    if _LOGGER not in source:
        return source
    return source.replace(_LOGGER, "get_logger(__name__)").replace(
        "import logging\n",
        "import logging\nfrom speechbrain.utils.logger import get_logger\n",
        1,
    )


def signed(source, authors):
    """Ends a module's docstring with its authors.

    Arguments
    ---------
    source : str
        Python that begins with a docstring.
    authors : str
        Who, and in which year.

    Returns
    -------
    str
    """
    docstring = ast.get_docstring(ast.parse(source), clean=False)
    end = source.index(docstring) + len(docstring)
    text = source[:end].rstrip()
    return f"{text}\n\nAuthors\n * {authors}\n{source[end:]}"
