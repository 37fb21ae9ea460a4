"""One adapter per library that fastconv is measured against."""
