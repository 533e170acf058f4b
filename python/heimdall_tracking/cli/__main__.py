"""`python -m heimdall_tracking.cli`."""

import sys

from . import main

sys.exit(main())
