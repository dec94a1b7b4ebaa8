"""Which evaluator owns which partition: rendezvous hashing over those that live. Pure."""

import hashlib
from collections.abc import Sequence


def owner_of(partition: int, evaluators: Sequence[str]) -> str:
    """The evaluator with the highest hash; when one comes or goes, only its own partitions move."""
    return max(evaluators, key=lambda one: (_weight(partition, one), one))


def partitions_of(evaluator: str, evaluators: Sequence[str], partitions: int) -> set[int]:
    """The partitions that one of the evaluators owns."""
    return {one for one in range(partitions) if owner_of(one, evaluators) == evaluator}


def _weight(partition: int, evaluator: str) -> bytes:
    return hashlib.blake2b(f"{partition} {evaluator}".encode(), digest_size=8).digest()
