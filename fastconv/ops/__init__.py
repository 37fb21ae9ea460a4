"""The public functions: they build a problem, hand it to dispatch, and document what it means."""
