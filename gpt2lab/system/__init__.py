"""Device, precision, ranks and signals: the machine, as training, evaluation, the app and benchmarks use it."""
