"""The gRPC contracts and the code generated from them (make proto)."""
