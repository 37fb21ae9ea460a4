"""What tests, benchmarks and the self-test share."""
