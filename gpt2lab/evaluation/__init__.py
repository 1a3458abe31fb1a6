"""How good a model is: functions of a plain model that return named numbers."""
