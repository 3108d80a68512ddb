"""`python -m ipvsw` is ipvswd."""

import sys

from ipvsw.daemon.main import main

sys.exit(main())
