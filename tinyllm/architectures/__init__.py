"""What a model is: its configuration and, from that, its plan of steps."""
