"""Users: events, cut-off, facts, labels; reading any table, validation, sample data."""
