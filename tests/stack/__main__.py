"""The servers for tests without tests: `python -m tests.stack up`, or `… doctor`.

up      starts them, prints their URLs as export lines, stays until Ctrl-C
doctor  says which ways are open here, and why the others are not
"""

import os
import signal
import sys

from tests.stack import choice, containers, trees
from tests.stack.choice import PRODUCTS, STACK_VARIABLE, URL_VARIABLES, Server, Unavailable
from tests.stack.session import MANAGEMENT_VARIABLE, Stack

SERVERS: tuple[Server, ...] = ("broker", "database")


def main(argv: list[str]) -> int:
    commands = {"up": up, "doctor": doctor}
    if len(argv) != 1 or argv[0] not in commands:
        print(__doc__, file=sys.stderr)
        return 2
    stack = Stack(os.environ, lambda line: print(line, file=sys.stderr))
    try:
        return commands[argv[0]](stack)
    except Unavailable as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    finally:
        stack.close()


def up(stack: Stack) -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    broker, database = stack.broker(), stack.database()
    # Standard output is for `eval`; what a person reads goes to standard error.
    print(f"export {URL_VARIABLES['broker']}={broker.url}")
    print(f"export {MANAGEMENT_VARIABLE}={broker.management_url}")
    print(f"export {URL_VARIABLES['database']}={database.url}", flush=True)
    for line in (*stack.started, "Ctrl-C ends them"):
        print(line, file=sys.stderr)
    try:
        signal.pause()
    except KeyboardInterrupt:
        print("ended", file=sys.stderr)
    return 0


def doctor(stack: Stack) -> int:
    facts = stack.facts()
    found = True
    for server in SERVERS:
        plan = choice.plan(server, os.environ, facts)
        found = found and bool(plan.ways)
        print(f"{PRODUCTS[server]}: {' then '.join(plan.ways) or 'no way'}")
        for reason in plan.refusals:
            print(f"  not {reason}")
        if "docker" in plan.ways:
            print(f"  docker would run {containers.image(server)}")
    for kind in trees.SUITES:
        state = "made" if kind in facts.trees else "not made yet"
        print(f"{kind} ({STACK_VARIABLE}={kind}): {trees.tree_folder(kind, os.environ)}, {state}")
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
