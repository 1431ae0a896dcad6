"""Floor 2: small signed hints between processes. They may be lost, repeated and reordered, and nothing breaks."""
