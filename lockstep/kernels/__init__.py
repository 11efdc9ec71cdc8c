"""Kernels in PyTorch and C++ whose rows do not depend on their neighbours: what makes both sides one computation."""
