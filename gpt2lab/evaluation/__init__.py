"""Evaluation: functions of a model that return named numbers."""
