"""Users: events, cut-off, facts and labels; reading any table, validation, sample data."""
