"""The repositories: one for each entity, each the only place that knows the SQL of its tables."""
