"""What a training run consists of beside its loop, `benchmarks/train.py`."""
