"""Benchmarks: what Vervet costs, measured on the real servers that tests/stack starts.

`ingest` and `agent` measure; `pipeline` and `product` are what they measure, `hosts` and
`publisher` make the load; `processes` reads what the kernel counted, `figures` keeps and shows it.
Nothing here is imported by the product.
"""
