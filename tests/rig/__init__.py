"""Real servers for tests, demos and benches: each on a free port, in its own folder, stopped by its pid."""
