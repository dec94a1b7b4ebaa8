"""Every contract that two processes share: messages, documents, topology, migrations."""
