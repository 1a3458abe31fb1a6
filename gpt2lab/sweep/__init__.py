"""Sweeps: grids of ordinary training runs in one folder, trained one after another or one a GPU, with one page."""
