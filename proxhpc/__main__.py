"""`python -m proxhpc`."""

import sys

from proxhpc.cli.main import main

sys.exit(main())
