"""What runs inside a TorchServe worker: the handlers, the engines and the pipeline."""
