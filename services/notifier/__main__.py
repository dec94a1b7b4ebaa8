"""`python -m services.notifier`: the same as `vervet notifier`."""

import sys

from services.cli import main

main(["notifier", *sys.argv[1:]])
