"""`python -m mover`: the command line."""

import sys

from mover.cli import main

sys.exit(main())
