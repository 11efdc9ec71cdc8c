"""The kernels in C++ for CPUs, compiled once per machine, and what decides whether they or PyTorch's operators run."""
