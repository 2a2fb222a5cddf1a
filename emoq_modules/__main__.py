"""``python -m emoq_modules`` is the ``emoq`` command."""

import sys

from emoq_modules.commands.cli import main

sys.exit(main())
