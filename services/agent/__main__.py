"""`python -m services.agent`: the same as `vervet agent`."""

import sys

from services.cli import main

main(["agent", *sys.argv[1:]])
