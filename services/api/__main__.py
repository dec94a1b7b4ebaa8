"""`python -m services.api`: the same as `vervet api`."""

import sys

from services.cli import main

main(["api", *sys.argv[1:]])
