"""The backends: one module each, loaded when a call first needs it."""
