"""``python -m gadget.cli``: the command `pogmdm` without its script."""

import sys

from gadget.cli import main

sys.exit(main())
