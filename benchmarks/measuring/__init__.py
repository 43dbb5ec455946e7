"""How the training benchmarks measure: photos laid out, Refit run as its user would, fresh processes, pairs of runs."""
