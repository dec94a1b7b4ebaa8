"""Every contract that two processes share: messages, documents, bus topology, database migrations."""
