"""The accuracy suite, and suites on clean labels: rows, settings, training, tables and figures."""
