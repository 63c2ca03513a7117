"""What is measured, a module for each workload; `benchmarks.plan` lists them in order."""
