"""The processes of Vervet: a folder is a process, a file is what processes share."""
