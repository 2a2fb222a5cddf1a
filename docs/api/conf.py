"""How Sphinx builds the reference of ``emoq_modules``: ``make api``."""

import shutil
import sys
from pathlib import Path
from pkgutil import iter_modules

from docutils.nodes import paragraph
from jinja2 import Template

# These files, whatever is installed.
sys.path.insert(0, str(Path(__file__).parents[2]))

import emoq_modules  # noqa: E402

# From below, as in docs/design.md; below all of them lies errors.py.
FLOORS = "lobes", "dataio", "evaluation", "inference", "training", "commands"

project = "emoq_modules"
version = emoq_modules.__version__
html_title = f"EmoQ {version}"
html_theme = "furo"
html_copy_source = False
html_show_copyright = False
html_static_path = ["static"]
html_css_files = ["tables.css"]
templates_path = ["templates"]
exclude_patterns = ["_build", "templates"]
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]

autodoc_member_order = "bysource"
python_maximum_signature_line_length = 78
toc_object_entries_show_parents = "hide"
# What a method of ours lacks is not torch's to say.
autodoc_inherit_docstrings = False
napoleon_use_ivar = True  # a list of attributes, and not an entry for each
# A public name is described once, on a page of its own.
autosummary_context = {"public": emoq_modules._PUBLIC}

# Every reference to a name of ours has to lead somewhere. Those of others are
# not looked up, which takes a network; nor is what names no class.
nitpicky = True
nitpick_ignore_regex = [
    ("py:(class|exc)", r"(?!emoq_modules\.)\w+\..+"),
    (
        "py:class",
        "array_like|callable|file object|iterable|iterator|optional|Path",
    ),
]


def write_modules(app, config):
    """Writes the page of all modules, a section for each floor."""
    template = Path(app.confdir, "templates", "modules.rst")
    page = Path(app.srcdir, "generated", "modules.rst")
    # Pages of names that are there no more would be in no table of contents.
    shutil.rmtree(page.parent, ignore_errors=True)
    page.parent.mkdir()
    root = Path(emoq_modules.__file__).parent
    floors = {
        floor: [module.name for module in iter_modules([str(root / floor)])]
        for floor in FLOORS
    }
    text = Template(template.read_text(encoding="utf-8")).render(floors=floors)
    page.write_text(text, encoding="utf-8")


def point_to_public_names(app, what, name, obj, options, lines):
    """Ends a module's docstring with links to its public names."""
    module = name.removeprefix("emoq_modules.")
    public = [key for key, own in emoq_modules._PUBLIC.items() if own == module]
    if what == "module" and public:
        links = ", ".join(f":class:`~emoq_modules.{key}`" for key in public)
        lines += ["", f"On pages of their own: {links}."]


def skip_fields(app, what, name, obj, skip, options):
    """Leaves out what ``NamedTuple`` says of a field: its number."""
    text = getattr(obj, "__doc__", None) or ""
    return True if text.startswith("Alias for field number") else None


def leave_object_out(app, doctree):
    """Names no bases where there is none but ``object``."""
    for node in list(doctree.findall(paragraph)):
        if node.astext() == "Bases: object":
            node.parent.remove(node)


def setup(app):
    """Has Sphinx call what there is no setting for."""
    app.connect("config-inited", write_modules)
    app.connect("autodoc-process-docstring", point_to_public_names)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("doctree-read", leave_object_out)
