"""`python -m ipvsw` is ipvswd."""

import sys

from .daemon import main

sys.exit(main())
