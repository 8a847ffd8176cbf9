"""The parts of a training run, except its loop, `benchmarks/train.py`."""
