"""The ops as Triton kernels. Import these modules only where Triton is installed."""
