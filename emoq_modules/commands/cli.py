"""The ``emoq`` command: each of its commands has a module of its own."""

import argparse
import difflib
import os
import re
import sys
from functools import partial

from emoq_modules import __version__
from emoq_modules.commands.evaluate import add_evaluate
from emoq_modules.commands.export import add_export
from emoq_modules.commands.options import exit_status
from emoq_modules.commands.predict import add_predict
from emoq_modules.commands.probe import add_probe
from emoq_modules.commands.reproduce import add_reproduce
from emoq_modules.commands.serve import add_serve
from emoq_modules.errors import ConfigurationError


def main(arguments=None):
    """Does what a command line asks for; None is that of this process.

    Without any argument the overview goes to the standard error, as after a
    mistake: a script that lost its arguments has not succeeded. Returns the
    exit status: 0, 1 if some of the work could not be done, 2 after an error
    message.
    """
    parser, commands = _make_parser()
    if "_ARGCOMPLETE" in os.environ:  # the shell asks for completions
        import argcomplete

        argcomplete.autocomplete(parser, always_complete_options=False)
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        parser.print_help(sys.stderr)
        return 2
    _check_command(parser, commands, arguments)
    goes_on = arguments[0] in ("reproduce", "probe")
    return exit_status(partial(_run, parser), arguments, goes_on)


def _run(parser, arguments):
    own, own.rest = parser.parse_known_args(arguments)
    # These take the options of train.py, evaluate for a corpus.
    takes_more = own.command in ("reproduce", "probe")
    takes_more |= own.command == "evaluate" and bool(own.preset)
    if own.rest and not takes_more:
        raise ConfigurationError(
            f"emoq {own.command} knows no {' '.join(own.rest)}; emoq "
            f"{own.command} --help lists what it knows."
        )
    return own.function(own)


def _make_parser():
    """The parser, and its commands by name."""
    parser = argparse.ArgumentParser(
        prog="emoq",
        description=(
            "Speech emotion recognition with EmoQ. Models are trained by "
            "train.py;\nthe rest is here."
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "-V",
        "--version",
        action="version",
        version=f"%(prog)s {__version__}",
        help="show the version and exit",
    )
    commands = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True
    )
    add_reproduce(commands)
    add_probe(commands)
    add_predict(commands)
    add_evaluate(commands)
    add_export(commands)
    add_serve(commands)
    lines = "\n".join(command.epilog for command in commands.choices.values())
    firsts = re.findall(r"^examples:\n(.*)$", lines, re.MULTILINE)
    parser.epilog = "\n".join(
        [
            "examples:",
            *firsts,
            "",
            "More of a command, and more examples: emoq COMMAND --help",
        ]
    )
    return parser, commands.choices


def _check_command(parser, commands, arguments):
    """Ends the program if the command does not exist, and names the nearest."""
    # What is before a command has no value that could be taken for it.
    named = next((x for x in arguments if not x.startswith("-")), None)
    if named is None or named in commands:
        return
    near = difflib.get_close_matches(named, commands, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "see emoq --help"
    parser.error(f"there is no command {named!r}; {hint}")
