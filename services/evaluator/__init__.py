"""Evaluator: evaluates alert rules on arriving samples and publishes what changes."""
