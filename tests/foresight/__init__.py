"""The predictions of plans beside what was published: python -m tests.foresight ROWS.json."""
