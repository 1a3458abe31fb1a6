"""Tracking: metrics of a run while it trains, and the report afterwards."""
