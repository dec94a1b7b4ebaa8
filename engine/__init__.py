"""Pure computation without I/O: expressions and alert state machines."""
