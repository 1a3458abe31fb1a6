"""Time a training step, beside other implementations and the limit of the hardware; tools for timing."""
