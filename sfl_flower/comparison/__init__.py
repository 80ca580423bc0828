"""Methods side by side at equal samples: which runs, which rows, and what they say."""
