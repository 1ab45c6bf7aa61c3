"""Learn: delays within a run, scaling per run, folds that keep repeats together, and ridge."""
