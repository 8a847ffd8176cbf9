"""The accuracy suite, and suites on right labels: rows, settings, training, tables and figures."""
