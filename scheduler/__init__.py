"""Everything around TorchServe: gateway, fair queue, dispatcher, runner, sidecar, clients."""
