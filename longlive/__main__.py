"""``python -m longlive`` is ``longlive``."""

import sys

from longlive.cli import main

sys.exit(main())
