"""All that knows TorchServe from the outside: its process, its ports, its archives."""
