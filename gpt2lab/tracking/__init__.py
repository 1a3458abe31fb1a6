"""What a run leaves to be read: metrics while it trains, plots afterwards."""
