"""What devices, links and training software reach: tables, and how they are read."""
