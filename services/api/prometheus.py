"""Prometheus' HTTP API, in its own envelope; each part of it stands in a module of its own.

Source: https://prometheus.io/docs/prometheus/latest/querying/api/
"""

from fastapi import APIRouter

from services.api import discovery, federation, queries, rules, status, targets, tsdb

router = APIRouter()
for part in (queries, discovery, rules, targets, status, tsdb, federation):
    router.include_router(part.router)
