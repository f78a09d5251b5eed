"""One outside thing each: a process, a server, a file format, a GPU. Adapters never know each other."""
