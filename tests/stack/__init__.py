"""The real servers that integration tests use: found, made, started and stopped from here.

`choice` decides which way is taken, `trees` and `containers` are the ways, `broker` and `database`
are what a test gets, `session` ties them together. Nothing here is imported by the product.
"""
