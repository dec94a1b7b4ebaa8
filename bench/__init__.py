"""Benchmarks: what Vervet costs, beside others, on the real servers that tests/stack starts.

`ingest`, `disk`, `query`, `promql`, `growth`, `agent` and `stalls` measure. `pipeline`, `peers`,
`history` and `product` are what they measure; `recording`, `replay`, `hosts` and `wire` make the
samples, `publisher` and `requester` send them; `processes` reads what the kernel counted;
`figures`, `plot` and `tables` keep and show it; `record` is a command of its own. Nothing here
is imported by the product.
"""
