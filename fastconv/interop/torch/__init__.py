"""PyTorch on fastconv: `patch` for unmodified programs, and the operators as functions; needs ``torch``."""

from fastconv.interop.torch.patch import Report, patch

__all__ = ["Report", "patch"]
