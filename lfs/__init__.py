"""The search: controllers, journal, executors, command line."""
