"""Programs and tests that other libraries run on fastconv; each module needs its own library."""
