"""Pages from Jinja templates, as Markdown and as HTML.

A template is one text for both: it imports as ``page`` the macros (heading,
text, table, …) of ``markdown.jinja`` or ``html.jinja``, which lie beside this
file. Whatever a template is given is plain text: names of classes or folders
cannot become markup.
"""

import base64
import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup


def render(template, form, **values):
    """A page that a template, by its path in ``emoq_modules``, makes of values.

    ``form`` is ``markdown`` or ``html``. A ``markupsafe.Markup`` among the
    values stays as it is; what the template names and is not given is an error.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1]),
        autoescape=True,
        finalize=_as_markdown if form == "markdown" else None,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda data: base64.b64encode(data).decode()
    macros = environment.get_template(f"evaluation/{form}.jinja").module
    text = environment.get_template(template).render(values, page=macros)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def _as_markdown(value):
    """A value on one line, without what Markdown would read as markup."""
    if isinstance(value, Markup):
        return value
    text = " ".join(str(value).split())
    # A bracket around a number is a reference of the paper, and an underscore
    # inside a word is no emphasis.
    text = re.sub(r"([\\`*|<>&~]|\[(?!\d+\](?!\()))", r"\\\1", text)
    return Markup(re.sub(r"(?<!\w)_|_(?!\w)", r"\\_", text))
