"""The api: Prometheus' HTTP API, Vervet's own resources, live streams, and the page."""
