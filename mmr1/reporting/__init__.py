"""A run's report: one HTML page that opens offline. Never imports jax."""
