"""The Python client library; the command line is its first user."""
