"""Which known mistake explains the inner values of another engine."""
