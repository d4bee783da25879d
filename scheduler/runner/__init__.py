"""The process beside a TorchServe that pulls leases and streams what they produce."""
