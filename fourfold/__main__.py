"""`python -m fourfold` is the command `fourfold`."""

import sys

from fourfold.cli.main import main

sys.exit(main())
