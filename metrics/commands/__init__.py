"""What `python -m metrics` can do besides `serve`: a module a command, imported when asked for."""
