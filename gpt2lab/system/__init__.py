"""What training, evaluation, the app and the benchmarks all need of the machine."""
