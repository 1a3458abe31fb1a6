"""How fast is a training step here, beside other people's, and beside what the hardware can do?"""
