"""Comparisons at equal budgets: the number of epochs is tuned like every other setting."""
