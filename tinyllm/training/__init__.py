"""Training small models from scratch: data, vocabularies, networks, optimizers, checkpoints."""
