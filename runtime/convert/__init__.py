"""Published checkpoints as parameters of specc's models, and back."""
