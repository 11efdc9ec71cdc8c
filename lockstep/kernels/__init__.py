"""Plain PyTorch kernels whose rows do not depend on their neighbours: what makes engine and trainer one computation."""
