"""What inner values mean: lenses, attribution, circuits and sweeps."""
