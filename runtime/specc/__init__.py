"""specc: a declarative compiler for training language and multimodal models."""
