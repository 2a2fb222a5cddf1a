#!/usr/bin/env python3
"""Lays EmoQ over a clone of speechbrain/speechbrain, branch develop.

    python tools/to_speechbrain.py CHECKOUT

makes a branch that corrects what upstream has, and a short series of branches,
each with one commit on top of the one before, of which it checks the last out.
The same command again changes nothing, unless our files have changed. Which
file goes where is in tools/upstream/table.py.
"""

import argparse
import sys
from pathlib import Path

# These files' package, whatever is installed.
sys.path.insert(0, str(Path(__file__).parents[1]))

from upstream.checkout import Checkout, CheckoutError
from upstream.contribution import branches, contribution
from upstream.flatten import FlattenError
from upstream.imports import MoveError

from emoq_modules.configuration import ConfigurationError


def main(arguments=None):
    """Lays the contribution.

    Returns
    -------
    int
        Exit status: 0, or 2 after an error message; the checkout is then as it
        was.
    """
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkout", metavar="CHECKOUT")
    own = parser.parse_args(arguments)
    try:
        checkout = Checkout(own.checkout, branches())
        parts = contribution(checkout)
        changed = checkout.lay(parts)
    except (
        CheckoutError,
        ConfigurationError,
        FlattenError,
        MoveError,
    ) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    if not changed:
        print(f"{own.checkout} has all of it already; nothing has changed.")
        return 0
    print(f"Laid over {own.checkout}, on top of branch develop:")
    for part in parts:
        print(
            f"  {part.branch:<16} {len(part.files):>3} files  "
            f"{part.message.splitlines()[0]}"
        )
    print(f"{parts[-1].branch} is checked out.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
