"""Training steps to be timed, and how windows of them are compared."""
