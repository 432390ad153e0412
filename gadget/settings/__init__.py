"""What a user may set: the schema, where settings come from, and what is shipped (chains, presets)."""
