"""Ingest: stores samples. Consume, register layouts, batch, one transaction, then ack."""
