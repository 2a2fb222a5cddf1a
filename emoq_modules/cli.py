"""The ``emoq`` command: each of its commands has a module of its own."""

import argparse
import sys
from functools import partial

from emoq_modules.reproduce_command import add_reproduce


def main(arguments=None):
    """Does what a command line asks for.

    Returns
    -------
    int
        Exit status: 0, 1 if some of the work could not be done, 2 after an
        error message.
    """
    own, rest = make_parser().parse_known_args(arguments)
    # Imports of seconds, which help need not wait for.
    from emoq_modules.command_line import exit_status

    return exit_status(partial(own.function, own), rest)


def make_parser():
    """The parser of the command line, with all commands.

    Returns
    -------
    argparse.ArgumentParser
        What it parses has ``function``, which takes that and the list of the
        arguments that the parser does not know.
    """
    parser = argparse.ArgumentParser(
        prog="emoq", description="Speech emotion recognition with EmoQ."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_reproduce(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
