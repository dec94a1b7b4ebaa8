"""`python -m services.evaluator`: the same as `vervet evaluator`."""

import sys

from services.cli import main

main(["evaluator", *sys.argv[1:]])
