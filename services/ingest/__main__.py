"""`python -m services.ingest`: the same as `vervet ingest`."""

import sys

from services.cli import main

main(["ingest", *sys.argv[1:]])
