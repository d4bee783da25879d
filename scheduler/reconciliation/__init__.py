"""What drifts, found and put right at a fixed interval: one list of named checks, with counters."""
