"""`python -m tamis`: the command line without an installed script."""

import sys

from tamis.cli import main

sys.exit(main())
