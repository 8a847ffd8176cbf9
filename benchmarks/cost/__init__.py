"""What a training step costs: flops, memory, time, and communication between devices."""
