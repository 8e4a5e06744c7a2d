"""The trials of a search as a table: in a terminal, as a file, in a page."""
