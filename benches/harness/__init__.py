"""What the benchmarks are made of: processes, figures and the sections that use them."""
