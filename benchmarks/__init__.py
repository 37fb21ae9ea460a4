"""Verified benchmarks of convolution and pooling."""
