"""What Headrace reaches, beside what the machine allows: run ``python -m benchmarks --help``."""
